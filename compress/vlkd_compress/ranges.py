"""Measures how large each activation gets on the calibration images, the number an INT8 scale comes from.

Images are run one at a time and only running maxima and fixed histograms are kept, so memory does not grow
with the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from vlkd_runtime.errors import CalibrationError

from .graph import Graph

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")

BINS = 2048
LEVELS = 128
PERCENTILE = 99.99


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], images: Sequence[npt.NDArray[np.uint8]], method: Method
) -> dict[str, float]:
    """Return, for each tensor, the absolute value that should map to the largest INT8 level.

    Args:
        model: the float graph with one uint8 input.
        tensors: names of the activations to watch.
        images: ``(N, H, W, 3)`` uint8 each, as the graph's input wants them.
        method: ``minmax`` keeps the largest value seen; ``percentile`` cuts the last 0.01 %; ``entropy``
            picks the cut that loses least information.

    Returns:
        Tensor name to range; 0.0 for a tensor that was zero on every image.

    Raises:
        CalibrationError: an activation is not finite on some image.
    """
    watched = _Watched(model, tensors)
    largest = dict.fromkeys(tensors, 0.0)
    for index, image in enumerate(images):
        for name, value in watched.run(image).items():
            peak = float(np.abs(value).max(initial=0.0))
            if not np.isfinite(peak):
                msg = (
                    f"Expected finite activations, found {peak} in tensor {name!r} on calibration image "
                    f"{index}: the float network overflows there; retrain it before compressing."
                )
                raise CalibrationError(msg)
            largest[name] = max(largest[name], peak)
    if method == "minmax":
        return largest
    histograms = {name: np.zeros(BINS, dtype=np.int64) for name in tensors}
    for image in images:
        for name, value in watched.run(image).items():
            if largest[name] > 0.0:
                histograms[name] += np.histogram(np.abs(value), bins=BINS, range=(0.0, largest[name]))[0]
    cut = percentile_cut if method == "percentile" else entropy_cut
    return {
        name: largest[name] * cut(histograms[name]) / BINS if largest[name] > 0.0 else 0.0 for name in tensors
    }


class _Watched:
    """A session whose outputs are the watched tensors."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str]) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        types = Graph(model).types
        del copy.graph.output[:]
        copy.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), None)
            for name in tensors
        )
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        self._session = ort.InferenceSession(
            copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._tensors = list(tensors)

    def run(self, image: npt.NDArray[np.uint8]) -> dict[str, np.ndarray]:
        values = self._session.run(self._tensors, {self._input: image})
        return dict(zip(self._tensors, values, strict=True))


def percentile_cut(histogram: npt.NDArray[np.int64], percentile: float = PERCENTILE) -> int:
    """Return how many bins hold ``percentile`` of all values, at least one."""
    cumulative = np.cumsum(histogram)
    wanted = cumulative[-1] * percentile / 100.0
    return int(np.searchsorted(cumulative, wanted)) + 1


def entropy_cut(histogram: npt.NDArray[np.int64], step: int = 16) -> int:
    """Return the cut (in bins) whose 128-level version is nearest to the histogram in KL divergence.

    Values beyond a cut saturate, so the reference counts them in its last bin while the quantized version,
    which is made from the values below the cut only, does not: that is what makes a low cut cost something.

    References:
        S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 30-38.
    """
    counts = histogram.astype(np.float64)
    # Exact zeros (every ReLU makes many) are exact at any scale, so they must not pull the cut down.
    counts[0] = counts[1]
    if counts.sum() == 0.0:
        return len(counts)
    best, best_cost = len(counts), np.inf
    for cut in range(LEVELS, len(counts) + 1, step):
        inside = counts[:cut]
        reference = inside.copy()
        reference[-1] += counts[cut:].sum()
        cost = _divergence(reference, _quantized(inside))
        if cost <= best_cost:
            best, best_cost = cut, cost
    return best


def _quantized(inside: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Merge the bins into 128 levels and spread each level's mass over its bins that are not empty."""
    starts = np.arange(LEVELS) * len(inside) // LEVELS
    widths = np.diff(np.append(starts, len(inside)))
    mass = np.add.reduceat(inside, starts)
    filled = np.add.reduceat((inside > 0).astype(np.float64), starts)
    share = np.divide(mass, filled, out=np.zeros_like(mass), where=filled > 0)
    return np.repeat(share, widths) * (inside > 0)


def _divergence(reference: npt.NDArray[np.float64], quantized: npt.NDArray[np.float64]) -> float:
    """Return KL(reference || quantized) of two histograms; infinite when the second is empty."""
    total = quantized.sum()
    if total == 0.0:
        return float(np.inf)
    p, q = reference / reference.sum(), quantized / total
    seen = p > 0
    if np.any(q[seen] == 0):
        # The reference's last bin may hold clipped mass where the quantized one is empty.
        q = np.maximum(q, 1e-12)
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))
