"""A folded ONNX graph as a torch network that rounds where its INT8 version will.

The graph is one of a single image; `torch.vmap` lifts it to a batch, so that shapes which state a batch of 1 stay true.

Letters used in shapes: B batch, H and W pixels, D embedding size, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from vlkd_runtime.errors import RefusalError

from ..graph import EMBEDDING, LOGITS, WEIGHTED, Graph
from ..placement import Quantized, Residual
from ..qdq import activation_scale
from . import operators
from .rounding import fake_quantize, weight_scale

TRAINED = WEIGHTED | {"LayerNormalization", "InstanceNormalization"}


class QuantizedGraph(nn.Module):
    """The graph's nodes in order, with weights that train and scales that learn.

    Attributes:
        rounds: whether Q/DQ's rounding is applied; without it this is the float graph.
    """

    def __init__(
        self,
        graph: Graph,
        plans: Sequence[Quantized],
        residuals: Sequence[Residual],
        ranges: Mapping[str, float],
        frozen: Collection[str] = (),
    ) -> None:
        """Take over the graph's constants.

        Args:
            graph: the folded float graph.
            plans: layers that get INT8 inputs.
            residuals: additions that read their shortcut in INT8.
            ranges: tensor name to the value that maps to 127, to start from.
            frozen: names of nodes whose weights stay as they are.

        Raises:
            RefusalError: an operator that cannot be trained through, or a weight that two plans read differently.
        """
        super().__init__()
        self.rounds = True
        self._nodes = list(graph.model.graph.node)
        self._functions = [operators.find(node) for node in self._nodes]
        self._attributes = [
            {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            for node in self._nodes
        ]
        self._opset = next(
            item.version for item in graph.model.opset_import if item.domain in ("", "ai.onnx")
        )
        self._input = graph.inputs[0]
        self._plans = {plan.node: plan for plan in plans}
        self._shortcuts = {item.node: item for item in residuals}
        self._constants = {name: graph.constant(name) for node in self._nodes for name in node.input}
        trained = _trained(graph, frozen)
        self._slots: dict[str, str] = {}
        for index, (name, value) in enumerate(self._constants.items()):
            if value is None:
                continue
            slot, tensor = f"constant{index}", torch.from_numpy(np.array(value))
            self._slots[name] = slot
            if name in trained:
                self.register_parameter(slot, nn.Parameter(tensor))
            else:
                self.register_buffer(slot, tensor, persistent=False)
        watched = dict.fromkeys(
            [plan.activation for plan in plans] + [item.tensor for item in residuals], None
        )
        self._order = {name: index for index, name in enumerate(watched)}
        # Learned as logarithms: a step is then relative, and no scale becomes negative.
        start = [float(np.log(activation_scale(ranges[name]))) for name in watched]
        self.log_scales = nn.Parameter(torch.tensor(start))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``(B, D)`` and logits ``(B, C)`` of uint8 images ``(B, H, W, 3)``."""
        weights = self._rounded_weights()
        scales = self.log_scales.exp()

        def one(image: Tensor) -> tuple[Tensor, Tensor]:
            return self._run(image.unsqueeze(0), weights, scales)

        embedding, logits = torch.vmap(one)(images)
        return embedding.squeeze(1), logits.squeeze(1)

    def ranges(self) -> dict[str, float]:
        """Tensor name to the value that maps to 127, as learned."""
        found = (127.0 * self.log_scales.detach().double().exp()).tolist()
        return {name: found[index] for name, index in self._order.items()}

    def values(self) -> dict[str, npt.NDArray[np.float32]]:
        """The trained constants, by their names in the graph."""
        parameters = dict(self.named_parameters())
        return {
            name: parameters[slot].detach().numpy().copy()
            for name, slot in self._slots.items()
            if slot in parameters
        }

    def _constant(self, name: str) -> Tensor:
        found: Tensor = getattr(self, self._slots[name])
        return found

    def _rounded_weights(self) -> dict[str, Tensor]:
        """The weights that INT8 layers read, by node."""
        found: dict[str, Tensor] = {}
        if not self.rounds:
            return found
        for plan in self._plans.values():
            weight = self._constant(plan.weight)
            activation = self.log_scales[self._order[plan.activation]].detach().exp()
            bias = self._constant(plan.bias) if plan.bias in self._slots else None
            scale = weight_scale(weight.detach(), plan.axis, bias, activation)
            shape = [-1 if index == plan.axis else 1 for index in range(weight.ndim)]
            found[plan.node] = fake_quantize(weight, scale.reshape(shape))
        return found

    def _run(self, image: Tensor, weights: Mapping[str, Tensor], scales: Tensor) -> tuple[Tensor, Tensor]:
        values: dict[str, Tensor] = {self._input: image}
        rounded: dict[str, Tensor] = {}

        def read(name: str) -> Tensor | None:
            return None if not name else values[name] if name in values else self._constant(name)

        def quantized(name: str) -> Tensor:
            if name not in rounded:
                rounded[name] = fake_quantize(values[name], scales[self._order[name]])
            return rounded[name]

        for node, function, attributes in zip(self._nodes, self._functions, self._attributes, strict=True):
            given = [read(name) for name in node.input]
            if self.rounds and node.name in self._plans:
                given[0], given[1] = quantized(node.input[0]), weights[node.name]
            elif self.rounds and node.name in self._shortcuts:
                shortcut = self._shortcuts[node.name]
                given[shortcut.index] = quantized(shortcut.tensor)
            constants = {
                index: value
                for index, name in enumerate(node.input)
                if (value := self._constants.get(name)) is not None
            }
            made = function(operators.Call(node, attributes, given, constants, self._opset))
            outputs = made if isinstance(made, tuple) else (made,)
            values.update(zip(node.output, outputs, strict=False))
        return values[EMBEDDING], values[LOGITS]


def _trained(graph: Graph, frozen: Collection[str]) -> frozenset[str]:
    """Names of the float constants that train: weights and biases of layers and norms."""
    kept = {name for node in graph.model.graph.node if node.name in frozen for name in node.input}
    found: set[str] = set()
    for node in graph.model.graph.node:
        if node.op_type not in TRAINED:
            continue
        for name in node.input[1:]:
            value = graph.constant(name) if name else None
            if value is not None and value.dtype == np.float32 and name not in kept:
                if name in graph.producers:
                    msg = f"Expected weights as initializers, found a Constant node for {node.name!r}: export it again."
                    raise RefusalError(msg)
                found.add(name)
    return frozenset(found)
