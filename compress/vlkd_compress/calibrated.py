"""A float graph with its calibration images: measured once, written in as many dialects as there are targets.

Letters used in shapes: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from vlkd_runtime.errors import RefusalError

from .fold import fold
from .graph import Graph, load
from .inputs import check_images, require_float, require_head
from .ranges import Observed, RangeTable, observe

MOST_NAMED = 3


class Calibration:
    """Ranges of a graph's activations, measured when they are first asked for and kept.

    Attributes:
        model: the float ONNX file.
        images: the calibration images, ``(1, H, W, 3)`` each.
        head: where projection, normalisation and class-vector product are.
    """

    def __init__(
        self,
        model: Path,
        images: Iterable[npt.NDArray[np.uint8]],
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Read and fold the graph and look the images over; nothing is run yet.

        Args:
            model: the float ONNX graph: uint8 ``(1, H, W, 3)`` in, ``logits`` out.
            images: calibration images, each ``(1, H, W, 3)`` or ``(H, W, 3)`` uint8.
            progress: called after each image that was run.

        Raises:
            CalibrationError: no image, or an image of the wrong shape.
            DataError: the file is no such graph, or is quantized already.
        """
        self.model = model
        source = load(model)
        require_float(source, model)
        self._folded = fold(source)
        graph = Graph(self._folded)
        self.head = require_head(graph, model)
        self.images = check_images(images, graph)
        self._progress = progress
        self._seen: dict[str, Observed] = {}

    def folded(self) -> onnx.ModelProto:
        """Return a copy of the folded graph, to be rewritten."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self._folded)
        return copy

    def table(self, tensors: Iterable[str]) -> RangeTable:
        """Return the ranges of these tensors, running the images for those not seen yet.

        Raises:
            CalibrationError: an activation is not finite on some image.
        """
        wanted = tuple(dict.fromkeys(tensors))
        missing = [name for name in wanted if name not in self._seen]
        if missing:
            self._seen |= observe(self._folded, missing, self.images, progress=self._progress).tensors
        return RangeTable({name: self._seen[name] for name in wanted})

    def require_some(self, planned: object, kept: Iterable[tuple[str, str]]) -> None:
        """Refuse a plan with nothing in it.

        Raises:
            RefusalError: lists why layers stay float, those with the same reason together.
        """
        if not planned:
            alike: dict[str, list[str]] = {}
            for node, reason in kept:
                alike.setdefault(reason, []).append(node)
            listed = "; ".join(f"{_some(nodes)}: {reason}" for reason, nodes in alike.items())
            msg = f"Found nothing to quantize in {self.model}: {listed or 'no convolution or linear layer'}"
            raise RefusalError(msg)


def _some(nodes: Sequence[str]) -> str:
    """Name a few nodes and count the others."""
    named, more = nodes[:MOST_NAMED], len(nodes) - MOST_NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
