"""Looks into an ONNX file without ONNX: enough to hold it to the manifest and to its own bytes.

An ONNX model may name other files that hold its weights. An engine would read them from the disk, past every
hash of the bundle; so the one thing looked for everywhere is a tensor that is not stored inside.

References:
    https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers);
    https://protobuf.dev/programming-guides/encoding/ (wire format).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from .errors import BundleError
from .manifest import ModelSpec

# Message by message: which field holds which message that can lead to a tensor.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_DATA_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 2, 13, 14
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
_DTYPES |= dict.fromkeys(range(17, 21), "float8")  # E4M3 and E5M2, each in two kinds
_DEEPEST = 64


class _Malformed(Exception):
    """The bytes are no protobuf message."""


@dataclass(slots=True)
class _Face:
    """The model's opset and the tensors at its border."""

    opset: int = 0
    tensors: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = field(
        default_factory=lambda: {"inputs": {}, "outputs": {}}
    )


def check_model(data: bytes, spec: ModelSpec, *, where: str) -> None:
    """Hold a model's bytes to what the manifest says of it.

    Args:
        data: The ONNX file.
        spec: Tensors and opset to expect.
        where: What to call the file in messages.

    Raises:
        BundleError: Not an ONNX model, another opset, other inputs or outputs, or weights in other files.
    """
    if keeps_weights_outside(data, where=where):
        _refuse(where, "it keeps weights in other files, which no hash covers")
    try:
        found = _read_face(memoryview(data))
    except _Malformed as error:
        _refuse(where, f"it is no ONNX model: {error}")
    if found.opset != spec.opset:
        _refuse(where, f"expected opset {spec.opset} as in the manifest, found {found.opset}")
    expected = {
        "inputs": {"image": ("uint8", tuple(spec.image))},
        "outputs": {
            "embedding": ("float32", tuple(spec.embedding)),
            "logits": ("float32", tuple(spec.logits)),
        },
    }
    for side, tensors in expected.items():
        if found.tensors[side] != tensors:
            _refuse(where, f"expected the {side} {_show(tensors)}, found {_show(found.tensors[side])}")


def count_operators(data: bytes, *, where: str) -> Counter[str]:
    """Count the main graph's nodes by operator.

    Raises:
        BundleError: Not an ONNX model.
    """
    counts: Counter[str] = Counter()
    try:
        for number, graph in _fields(memoryview(data)):
            if number == 7:
                for kind, node in _fields(_block(graph)):
                    if kind == 1:
                        counts[_text(dict(_fields(_block(node))).get(4))] += 1
    except _Malformed as error:
        _refuse(where, f"it is no ONNX model: {error}")
    return counts


def stored_types(data: bytes, *, where: str) -> frozenset[str]:
    """Give the types of the main graph's weights and zero points: float32, int8, float8 and so on.

    Raises:
        BundleError: Not an ONNX model.
    """
    try:
        codes = {
            dict(_fields(_block(tensor))).get(_DATA_TYPE)
            for number, graph in _fields(memoryview(data))
            if number == 7
            for kind, tensor in _fields(_block(graph))
            if kind == 5
        }
        return frozenset(_DTYPES.get(code, f"type {code}") for code in codes if isinstance(code, int))
    except _Malformed as error:
        _refuse(where, f"it is no ONNX model: {error}")


def keeps_weights_outside(data: bytes, *, where: str) -> bool:
    """Tell whether a model names other files that hold some of its tensors.

    Raises:
        BundleError: Not an ONNX model.
    """
    try:
        return _leads_outside(memoryview(data), "Model", 0)
    except _Malformed as error:
        _refuse(where, f"it is no ONNX model: {error}")


def _leads_outside(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _DEEPEST:
        msg = "graphs nested too deeply"
        raise _Malformed(msg)
    children = _CHILDREN[kind]
    outside = False
    for number, value in _fields(message):
        if isinstance(value, memoryview) and number in children:
            # No short cut: the rest must be well-formed, too.
            outside |= _leads_outside(value, children[number], depth + 1)
        elif kind == "Tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION):
            outside |= value != 0
    return outside


def _read_face(model: memoryview) -> _Face:
    """Read the opset and the graph's inputs and outputs."""
    found = _Face()
    graphs = [value for number, value in _fields(model) if number == 7]
    if len(graphs) != 1:
        msg = f"expected one graph, found {len(graphs)}"
        raise _Malformed(msg)
    for number, value in _fields(model):
        if number == 8:
            entry = dict(_fields(_block(value)))
            if bytes(_block(entry.get(1, memoryview(b"")))) in (b"", b"ai.onnx"):
                version = entry.get(2, 0)
                found.opset = version if isinstance(version, int) else 0
    constants = set()
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number, value in _fields(_block(graphs[0])):
        if number == 5:
            constants.add(_text(dict(_fields(_block(value))).get(8)))
        elif number in (11, 12):
            name, tensor = _value_info(_block(value))
            (inputs if number == 11 else found.tensors["outputs"])[name] = tensor
    # Older writers list the weights among the inputs.
    found.tensors["inputs"] = {name: tensor for name, tensor in inputs.items() if name not in constants}
    return found


def _value_info(message: memoryview) -> tuple[str, tuple[str, tuple[int, ...]]]:
    info = dict(_fields(message))
    tensor_type = dict(_fields(_block(dict(_fields(_block(info.get(2)))).get(1))))
    code = tensor_type.get(1, 0)
    sizes: list[int] = []
    if 2 in tensor_type:
        for _, dimension in _fields(_block(tensor_type[2])):
            size = dict(_fields(_block(dimension))).get(1, -1)
            sizes.append(size if isinstance(size, int) else -1)
    return _text(info.get(1)), (
        _DTYPES.get(code, f"type {code}") if isinstance(code, int) else "?",
        tuple(sizes),
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Go through a message's fields: varints as int, everything else as its bytes."""
    offset, end = 0, len(message)
    while offset < end:
        key, offset = _varint(message, offset)
        wire = key & 7
        if wire == 0:
            number, offset = _varint(message, offset)
            yield key >> 3, number
            continue
        if wire == 2:
            size, offset = _varint(message, offset)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            msg = f"wire type {wire} at byte {offset}"
            raise _Malformed(msg)
        if offset + size > end:
            msg = "it is cut short"
            raise _Malformed(msg)
        yield key >> 3, message[offset : offset + size]
        offset += size


def _varint(message: memoryview, offset: int) -> tuple[int, int]:
    value = shift = 0
    while offset < len(message) and shift < 70:
        byte = message[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
    msg = "it is cut short"
    raise _Malformed(msg)


def _block(value: int | memoryview | None) -> memoryview:
    if value is None:
        return memoryview(b"")
    if isinstance(value, int):
        msg = "a number where a message was expected"
        raise _Malformed(msg)
    return value


def _text(value: int | memoryview | None) -> str:
    return bytes(_block(value)).decode("utf-8", "replace")


def _show(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    shown = (f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in sorted(tensors.items()))
    return ", ".join(shown) or "none"


def _refuse(where: str, problem: str) -> NoReturn:
    msg = f"{where}: {problem}; build the bundle again"
    raise BundleError(msg)
