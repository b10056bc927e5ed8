"""Measures which values each activation takes on the calibration images, the numbers INT8 scales come from.

Images are run one at a time and only running extremes and fixed histograms are kept, so memory does not grow
with the number of images. One table serves every dialect: TensorRT's scales are symmetric around zero, ONNX
Runtime's have a zero point, and both are read off the same histogram.

Letters used in shapes: H and W pixels, B bins (4096).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from vlkd_runtime.errors import CalibrationError

from .cuts import BINS, entropy_cut, mse_cut, mse_interval, percentile_cut, percentile_interval
from .graph import Graph

Method = Literal["minmax", "entropy", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile", "mse")

# A histogram needs no more values of one tensor and image than this; extremes are taken over all of them.
MOST_VALUES = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What one tensor did on the calibration images.

    Attributes:
        low: smallest value.
        high: largest value.
        counts: ``(B,)``, how often each of 4096 equal parts of -peak to peak was met, where peak is the
            largest absolute value; None where only the extremes were asked for.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64] | None

    @property
    def peak(self) -> float:
        """Largest absolute value."""
        return max(-self.low, self.high, 0.0)

    @property
    def magnitudes(self) -> npt.NDArray[np.int64]:
        """Histogram of absolute values, ``(B/2,)`` from zero to the peak."""
        assert self.counts is not None
        return self.counts[BINS:] + self.counts[:BINS][::-1]


@dataclass(frozen=True, slots=True, eq=False)
class RangeTable:
    """Ranges of activations, by tensor name, in the form each dialect wants."""

    tensors: dict[str, Observed]

    def symmetric(self, name: str, method: Method) -> float:
        """Return the absolute value that should map to the largest level; 0.0 for a tensor that was zero."""
        seen = self.tensors[name]
        if method == "minmax" or seen.peak == 0.0:
            return seen.peak
        cuts = {"percentile": percentile_cut, "entropy": entropy_cut, "mse": mse_cut}
        return seen.peak * cuts[method](seen.magnitudes) / BINS

    def asymmetric(self, name: str, method: Method) -> tuple[float, float]:
        """Return the interval, zero within it, that should map to the levels from lowest to highest."""
        seen = self.tensors[name]
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        if method == "minmax" or seen.peak == 0.0:
            return low, high
        if method == "entropy":
            cut = seen.peak * entropy_cut(seen.magnitudes) / BINS
            return max(low, -cut), min(high, cut)
        assert seen.counts is not None
        find = percentile_interval if method == "percentile" else mse_interval
        first, last = find(seen.counts)
        step = seen.peak / BINS
        return max(low, (first - BINS) * step), min(high, (last - BINS) * step)


def observe(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Sequence[npt.NDArray[np.uint8]],
    *,
    histograms: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> RangeTable:
    """Run the images through a float graph and keep what its activations did.

    Args:
        model: the float graph with one uint8 input.
        tensors: names of the activations to watch.
        images: ``(1, H, W, 3)`` uint8 each, as the graph's input wants them.
        histograms: whether to run the images a second time, for histograms.
        progress: called after each run.

    Raises:
        CalibrationError: an activation is not finite on some image.
    """
    watched = _Watched(model, tensors)
    low, high = dict.fromkeys(tensors, np.inf), dict.fromkeys(tensors, -np.inf)
    for index, image in enumerate(images):
        for name, value in watched.run(image).items():
            least, most = float(value.min(initial=np.inf)), float(value.max(initial=-np.inf))
            if np.isnan(value).any() or np.isinf(least + most):
                found = least if not np.isfinite(least) else most
                msg = (
                    f"Expected finite activations, found {found} in tensor {name!r} on calibration image "
                    f"{index}: the float network overflows there; retrain it before compressing."
                )
                raise CalibrationError(msg)
            low[name], high[name] = min(low[name], least), max(high[name], most)
        progress()
    counts: dict[str, npt.NDArray[np.int64]] = {}
    if histograms:
        peaks = {name: max(-low[name], high[name], 0.0) for name in tensors}
        counts = _histograms(watched, peaks, images, progress)
    return RangeTable({name: Observed(low[name], high[name], counts.get(name)) for name in tensors})


def _histograms(
    watched: _Watched,
    peaks: dict[str, float],
    images: Iterable[npt.NDArray[np.uint8]],
    progress: Callable[[], None],
) -> dict[str, npt.NDArray[np.int64]]:
    counts = {name: np.zeros(2 * BINS, dtype=np.int64) for name in peaks}
    for index, image in enumerate(images):
        for name, value in watched.run(image).items():
            if peaks[name] > 0.0:
                step = -(-value.size // MOST_VALUES)
                # Another start for each image, so that no place in the tensor is always skipped.
                part = value.reshape(-1)[index % step :: step].astype(np.float64)
                bins = np.floor(part * (BINS / peaks[name])).astype(np.int64) + BINS
                np.clip(bins, 0, 2 * BINS - 1, out=bins)
                counts[name] += np.bincount(bins, minlength=2 * BINS)
        progress()
    return counts


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
