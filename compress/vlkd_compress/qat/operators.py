"""ONNX operators in torch, for graphs of one image: what image classifiers are made of, and no more.

Each function takes a node's inputs and its attributes. Shapes, axes and the like must be constants, which they
are in a graph whose shapes are fixed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd_runtime.errors import RefusalError


@dataclass(frozen=True, slots=True)
class Call:
    """One node that is to be run.

    Attributes:
        node: the node.
        attributes: its attributes as Python values.
        given: its inputs; None for one that is left out.
        constants: the inputs that are constants, by index.
        opset: of the model; the meaning of some attributes depends on it.
    """

    node: onnx.NodeProto
    attributes: Mapping[str, Any]
    given: Sequence[Tensor | None]
    constants: Mapping[int, npt.NDArray[Any]]
    opset: int

    def __getitem__(self, index: int) -> Tensor:
        value = self.given[index]
        assert value is not None
        return value

    def optional(self, index: int) -> Tensor | None:
        """An input that may be left out."""
        return self.given[index] if index < len(self.given) else None

    def integers(self, index: int, attribute: str = "") -> list[int] | None:
        """Whole numbers from a constant input, or from the attribute that older opsets have; None without.

        Raises:
            RefusalError: they are computed at run time.
        """
        if attribute in self.attributes:
            return [int(value) for value in self.attributes[attribute]]
        if index >= len(self.node.input) or not self.node.input[index]:
            return None
        if index not in self.constants:
            msg = f"Expected constant input {index} of {self.node.op_type} at {self.node.name!r}, found a computed one."
            raise RefusalError(msg)
        return [int(value) for value in self.constants[index].ravel()]


Operator = Callable[[Call], "Tensor | tuple[Tensor, ...]"]


def find(node: onnx.NodeProto) -> Operator:
    """The function of a node.

    Raises:
        RefusalError: there is none.
    """
    found = OPERATORS.get(node.op_type)
    if found is None or node.domain not in ("", "ai.onnx"):
        msg = (
            f"Expected operators that can be trained through, found {node.op_type} at {node.name!r}: leave "
            "quantization-aware training of this graph out (qat_epochs = 0)."
        )
        raise RefusalError(msg)
    return found


def _pads(call: Call, sides: int) -> tuple[list[int], list[int]]:
    """Padding before and behind on each axis.

    Raises:
        RefusalError: it is not stated.
    """
    if call.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        msg = (
            f"Expected explicit padding at {call.node.name!r}, found auto_pad: export with explicit padding."
        )
        raise RefusalError(msg)
    pads = list(call.attributes.get("pads", [0] * 2 * sides))
    return pads[:sides], pads[sides:]


def _spatial(call: Call, kernel: Sequence[int]) -> tuple[Tensor, dict[str, Any]]:
    """The padded input of a convolution, and its strides, dilations and groups."""
    sides = len(kernel)
    begin, end = _pads(call, sides)
    how: dict[str, Any] = {
        "stride": list(call.attributes.get("strides", [1] * sides)),
        "dilation": list(call.attributes.get("dilations", [1] * sides)),
    }
    if begin == end:
        return call[0], how | {"padding": begin}
    flat = [size for pair in zip(begin[::-1], end[::-1], strict=True) for size in pair]
    return F.pad(call[0], flat), how | {"padding": [0] * sides}


def _conv(call: Call) -> Tensor:
    source, how = _spatial(call, call[1].shape[2:])
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[call[1].ndim - 2]
    return run(source, call[1], call.optional(2), groups=int(call.attributes.get("group", 1)), **how)


def _max_pool(call: Call) -> Tensor:
    kernel = list(call.attributes["kernel_shape"])
    sides = len(kernel)
    begin, end = _pads(call, sides)
    flat = [size for pair in zip(begin[::-1], end[::-1], strict=True) for size in pair]
    padded = F.pad(call[0], flat, value=-math.inf)
    return F.max_pool2d(
        padded,
        kernel,
        stride=list(call.attributes.get("strides", [1] * sides)),
        dilation=list(call.attributes.get("dilations", [1] * sides)),
        ceil_mode=bool(call.attributes.get("ceil_mode", 0)),
    )


def _average_pool(call: Call) -> Tensor:
    kernel = list(call.attributes["kernel_shape"])
    source, how = _spatial(call, kernel)
    counted = bool(call.attributes.get("count_include_pad", 0))
    if source is not call[0] and not counted:  # the padding has become pixels, and would be counted
        msg = (
            f"Expected the same padding on both sides at {call.node.name!r}, or padding that counts, found "
            f"{list(call.attributes['pads'])}: leave quantization-aware training of this graph out (qat_epochs = 0)."
        )
        raise RefusalError(msg)
    return F.avg_pool2d(
        source,
        kernel,
        stride=how["stride"],
        padding=how["padding"],
        ceil_mode=bool(call.attributes.get("ceil_mode", 0)),
        count_include_pad=counted,
    )


def _gemm(call: Call) -> Tensor:
    first, second = call[0], call[1]
    first = first.t() if call.attributes.get("transA") else first
    second = second.t() if call.attributes.get("transB") else second
    product = float(call.attributes.get("alpha", 1.0)) * (first @ second)
    bias = call.optional(2)
    return product if bias is None else product + float(call.attributes.get("beta", 1.0)) * bias


def _clip(call: Call) -> Tensor:
    low, high = call.optional(1), call.optional(2)
    if low is None and "min" in call.attributes:
        low = torch.tensor(float(call.attributes["min"]))
    if high is None and "max" in call.attributes:
        high = torch.tensor(float(call.attributes["max"]))
    return torch.clamp(call[0], min=low, max=high)


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        axes = call.integers(1, "axes")
        chosen = list(range(call[0].ndim)) if axes is None else axes
        return function(call[0], chosen, bool(call.attributes.get("keepdims", 1)))

    return run


def _reshape(call: Call) -> Tensor:
    wanted, shape = call.integers(1) or [], call[0].shape
    return call[0].reshape([shape[index] if size == 0 else size for index, size in enumerate(wanted)])


def _flatten(call: Call) -> Tensor:
    axis = int(call.attributes.get("axis", 1))
    return call[0].reshape(math.prod(call[0].shape[:axis]), -1)


def _squeeze(call: Call) -> Tensor:
    axes = call.integers(1, "axes")
    return call[0].squeeze() if axes is None else call[0].squeeze(tuple(axes))


def _unsqueeze(call: Call) -> Tensor:
    axes, value = call.integers(1, "axes") or [], call[0]
    rank = value.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _slice(call: Call) -> Tensor:
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes = call.integers(3, "axes") or list(range(len(starts)))
    steps = call.integers(4) or [1] * len(starts)
    value = call[0]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        picked = range(value.shape[axis])[start:end:step]
        value = value.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
    return value


def _split(call: Call) -> tuple[Tensor, ...]:
    axis = int(call.attributes.get("axis", 0))
    sizes, count, length = call.integers(1, "split"), len(call.node.output), call[0].shape[axis]
    return torch.split(call[0], sizes if sizes else -(-length // count), dim=axis)


def _gather(call: Call) -> Tensor:
    axis, index = int(call.attributes.get("axis", 0)), call.integers(1) or []
    rank, length = np.ndim(call.constants[1]), call[0].shape[axis]
    picked = call[0].index_select(axis, torch.tensor([item % length for item in index], dtype=torch.int64))
    if rank == 0:
        return picked.squeeze(axis)
    shape = [*picked.shape[:axis], *call.constants[1].shape, *picked.shape[axis % picked.ndim + 1 :]]
    return picked.reshape(shape)


def _cast(call: Call) -> Tensor:
    wanted: dict[int, torch.dtype] = {
        onnx.TensorProto.FLOAT: torch.float32,
        onnx.TensorProto.INT64: torch.int64,
    }
    return call[0].to(wanted[int(call.attributes["to"])])


def _softmax(call: Call) -> Tensor:
    return torch.softmax(call[0], dim=int(call.attributes.get("axis", -1)))


def _layer_norm(call: Call) -> Tensor:
    shape = call[0].shape[int(call.attributes.get("axis", -1)) :]
    return F.layer_norm(
        call[0], list(shape), call[1], call.optional(2), float(call.attributes.get("epsilon", 1e-5))
    )


def _instance_norm(call: Call) -> Tensor:
    return F.instance_norm(
        call[0], weight=call[1], bias=call[2], eps=float(call.attributes.get("epsilon", 1e-5))
    )


def _batch_norm(call: Call) -> Tensor:
    shape = [1, -1] + [1] * (call[0].ndim - 2)
    gain = call[1] / torch.sqrt(call[4] + float(call.attributes.get("epsilon", 1e-5)))
    return call[0] * gain.reshape(shape) + (call[2] - call[3] * gain).reshape(shape)


def _hard_sigmoid(call: Call) -> Tensor:
    slope, offset = (float(call.attributes.get(key, value)) for key, value in (("alpha", 0.2), ("beta", 0.5)))
    return torch.clamp(slope * call[0] + offset, 0.0, 1.0)


def _gelu(call: Call) -> Tensor:
    tanh = call.attributes.get("approximate", b"none") == b"tanh"
    return F.gelu(call[0], approximate="tanh" if tanh else "none")


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs, two at a time."""
    return lambda call: functools.reduce(function, (call[index] for index in range(len(call.given))))


def _concat(call: Call) -> Tensor:
    return torch.cat([call[index] for index in range(len(call.given))], dim=int(call.attributes["axis"]))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Add": lambda call: call[0] + call[1],
        "AveragePool": _average_pool,
        "BatchNormalization": _batch_norm,
        "Cast": _cast,
        "Clip": _clip,
        "Concat": _concat,
        "Conv": _conv,
        "Div": lambda call: call[0] / call[1],
        "Erf": lambda call: torch.erf(call[0]),
        "Expand": lambda call: call[0] * torch.ones(call.integers(1) or []),
        "Flatten": _flatten,
        "Gather": _gather,
        "Gelu": _gelu,
        "Gemm": _gemm,
        "GlobalAveragePool": lambda call: call[0].mean(tuple(range(2, call[0].ndim)), keepdim=True),
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": lambda call: F.hardswish(call[0]),
        "Identity": lambda call: call[0],
        "InstanceNormalization": _instance_norm,
        "LayerNormalization": _layer_norm,
        "LeakyRelu": lambda call: F.leaky_relu(call[0], float(call.attributes.get("alpha", 0.01))),
        "MatMul": lambda call: call[0] @ call[1],
        "Max": _fold(torch.maximum),
        "MaxPool": _max_pool,
        "Min": _fold(torch.minimum),
        "Mul": lambda call: call[0] * call[1],
        "Neg": lambda call: -call[0],
        "Pow": lambda call: call[0] ** call[1],
        "ReduceL2": _reduce(lambda value, axes, keep: value.square().sum(axes, keepdim=keep).sqrt()),
        "ReduceMean": _reduce(lambda value, axes, keep: value.mean(axes, keepdim=keep)),
        "ReduceSum": _reduce(lambda value, axes, keep: value.sum(axes, keepdim=keep)),
        "Relu": lambda call: F.relu(call[0]),
        "Reshape": _reshape,
        "Sigmoid": lambda call: torch.sigmoid(call[0]),
        "Slice": _slice,
        "Softmax": _softmax,
        "Softplus": lambda call: F.softplus(call[0]),
        "Split": _split,
        "Sqrt": lambda call: torch.sqrt(call[0]),
        "Squeeze": _squeeze,
        "Sub": lambda call: call[0] - call[1],
        "Tanh": lambda call: torch.tanh(call[0]),
        "Transpose": lambda call: call[0].permute(
            list(call.attributes.get("perm", range(call[0].ndim)[::-1]))
        ),
        "Unsqueeze": _unsqueeze,
    }
)
