"""The table of the preflight's rules: what each asks, why, and who says so.

The checks are in `vlkd_compress.dialect`, `.checks` and `.accelerator`; each yields findings under a rule's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlkd_runtime.targets import EngineKind

Severity = Literal["refuse", "advise"]

_TENSORRT: frozenset[EngineKind] = frozenset({"tensorrt", "tensorrt-rtx"})
_EVERY: frozenset[EngineKind] = _TENSORRT | {"onnxruntime-cpu"}

_GUIDE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library"
_OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
_QUANTIZED = f"{_GUIDE}/work-quantized-types.html"
_TYPED = f"{_GUIDE}/advanced.html#strongly-typed-networks"
_SHAPES = f"{_GUIDE}/work-dynamic-shapes.html"
_MATRIX = "https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html"
_DLA = f"{_GUIDE}/dla-layer-restrictions.html"
_DLA_RUNTIME = f"{_GUIDE}/work-with-dla.html"
_RTX = "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/"
_FORMAT = "runtime/README.md, sections 2 and 3"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the preflight.

    Attributes:
        id: what scripts know it by; never given to another rule.
        name: what people know it by.
        asks: what a graph must be.
        reason: what happens otherwise.
        source: where that is written.
        engines: for which engines it holds.
        severity: whether a breach refuses the graph or only advises.
        accelerator: asked only when the graph is meant for the deep learning accelerator.
    """

    id: str
    name: str
    asks: str
    reason: str
    source: str
    engines: frozenset[EngineKind] = _TENSORRT
    severity: Severity = "refuse"
    accelerator: bool = False


RULES: tuple[Rule, ...] = (
    Rule(
        "VP001",
        "opset",
        "standard operators, of an opset that the target's parser reads",
        "A parser refuses opsets it does not know, and TensorRT has no operators of other domains.",
        _OPERATORS,
        _EVERY,
    ),
    Rule(
        "VP002",
        "operator",
        "no control flow, no operator whose output size depends on values, no integer-only operator",
        "They need a plugin, stop CUDA graphs, or cannot be built at all.",
        _OPERATORS,
    ),
    Rule(
        "VP003",
        "types",
        "tensors of types that the engine has",
        "TensorRT has no double, string, complex, 16-bit or unsigned 32- and 64-bit tensors.",
        _MATRIX,
    ),
    Rule(
        "VP004",
        "uint8-input",
        "the first reader of a uint8 input is a Cast",
        "TensorRT takes uint8 only at the border of a network; every other layer refuses it.",
        _TYPED,
    ),
    Rule(
        "VP005",
        "static-shape",
        "each tensor has fixed sizes, the batch apart",
        "Open heights and widths cost a profile for each range, slower kernels, and refuse CUDA graphs.",
        _SHAPES,
        _EVERY,
    ),
    Rule(
        "VP006",
        "batch-profile",
        "an open batch comes with one profile: smallest, usual and largest size",
        "Without a profile the builder refuses an open input; with several, a context must switch between them.",
        _SHAPES,
    ),
    Rule(
        "VP007",
        "outputs",
        "the outputs 'embedding' and 'logits'",
        "vlkd_runtime runs no bundle without them; TensorRT itself does not mind.",
        _FORMAT,
        _EVERY,
        "advise",
    ),
    Rule(
        "VP008",
        "typed",
        "the inputs of each node have types that go together",
        "A strongly typed network computes in the types the graph states; TensorRT 11 knows no other.",
        _TYPED,
        _EVERY,
    ),
    Rule(
        "VP009",
        "computed-shapes",
        "no integers are computed at run time",
        "Shapes worked out by the graph run on the host between kernels and break fusion; export folds them.",
        _SHAPES,
        _TENSORRT,
        "advise",
    ),
    Rule(
        "VP010",
        "symmetric",
        "Q/DQ have constant INT8 zero points, all zero, and positive finite scales",
        "TensorRT quantizes symmetrically only: its parser refuses other zero points.",
        _QUANTIZED,
    ),
    Rule(
        "VP011",
        "per-channel",
        "INT8 weights have one scale for each output channel",
        "One scale for all channels loses the small ones, and only the output-channel axis can be fused.",
        _QUANTIZED,
    ),
    Rule(
        "VP012",
        "bias",
        "no bias is quantized",
        "TensorRT dequantizes INT8 only; an INT32 bias is refused by its parser.",
        _QUANTIZED,
    ),
    Rule(
        "VP013",
        "placement",
        "Q/DQ stand where a convolution or linear layer reads them",
        "Elsewhere they keep layers from being fused, and each becomes a pass over memory.",
        f"{_QUANTIZED}, on the placement of Q/DQ",
    ),
    Rule(
        "VP014",
        "pair",
        "a convolution or linear layer has activations and weight quantized, or neither",
        "With one of the two TensorRT runs the layer in float and the conversion on top.",
        _QUANTIZED,
    ),
    Rule(
        "VP015",
        "head",
        "projection, normalisation and class-vector product are float",
        "Margins between near classes are smaller than INT8 steps on the unit sphere.",
        "CONTRIBUTING.md; measured by the guard",
    ),
    Rule(
        "VP020",
        "precision",
        "only precisions that the target computes in",
        "An engine refuses the others or, worse, runs them as float32 without saying so.",
        _MATRIX,
        _EVERY,
    ),
    Rule(
        "VP021",
        "memory",
        "weights, activations and builder fit into the target's memory",
        "A builder that runs out of memory is killed, or picks slow kernels without saying so.",
        "vlkd_compress.preflight.memory",
        _EVERY,
    ),
    Rule(
        "VP022",
        "int8-convolution",
        "convolutions in float16 rather than INT8",
        "TensorRT for RTX has INT8 kernels for the weights of linear layers, none for convolutions.",
        _RTX,
        frozenset({"tensorrt-rtx"}),
        "advise",
    ),
    Rule(
        "VP030",
        "dla-cores",
        "a target with a deep learning accelerator",
        "Orin Nano, Thor and desktops have none.",
        _DLA_RUNTIME,
        _EVERY,
        accelerator=True,
    ),
    Rule(
        "VP031",
        "dla-operator",
        "between first and last convolution, operators that the accelerator has",
        "Each other one moves the data to the GPU and back, without an error where fallback is allowed.",
        _DLA,
        accelerator=True,
    ),
    Rule(
        "VP032",
        "dla-convolution",
        "kernels of 1 to 32, strides of 1 to 8, padding below 32 and below the kernel, dilation to 32, channels to "
        "8192; deconvolutions without padding, dilation and groups, kernels and strides to 32 or 1 by 64, 96 or 128",
        "The accelerator's convolution unit is made for no more.",
        f"{_DLA}; NvInfer.h, IConvolutionLayer and IDeconvolutionLayer",
        accelerator=True,
    ),
    Rule(
        "VP033",
        "dla-pooling",
        "windows of 1 to 8, strides of 1 to 16, padding below 8",
        "The accelerator's pooling unit is made for no more.",
        f"{_DLA}; NvInfer.h, IPoolingLayer",
        accelerator=True,
    ),
    Rule(
        "VP034",
        "dla-size",
        "a fixed batch of at most 4096, other sizes of at most 8192",
        "The accelerator has no dynamic shapes and addresses no more.",
        _DLA,
        accelerator=True,
    ),
    Rule(
        "VP035",
        "dla-precision",
        "float16 or INT8 between first and last convolution",
        "The accelerator computes in nothing else.",
        _DLA,
        accelerator=True,
    ),
    Rule(
        "VP036",
        "dla-quantization",
        "no Q/DQ where the target's TensorRT is older than 10.11",
        "Older releases read no explicit quantization for the accelerator: ship float16 for it.",
        _DLA_RUNTIME,
        accelerator=True,
    ),
    Rule(
        "VP037",
        "dla-buffer",
        "one kernel and the rows under it fit into the 16 banks of the convolution buffer",
        "The accelerator holds both at once and cannot run the layer otherwise.",
        "TensorRT Developer Guide 8.5, 12.2: wtBanksForOneKernel + minDataBanks",
        accelerator=True,
    ),
)
BY_NAME = {rule.name: rule for rule in RULES}


def applicable(engine: EngineKind, *, accelerator: bool) -> tuple[Rule, ...]:
    """Return the rules that hold for an engine."""
    return tuple(rule for rule in RULES if engine in rule.engines and (accelerator or not rule.accelerator))
