"""Ranks layers by what quantizing them costs the worst domain, per microsecond that it saves.

Harm is counted in *margin flips*. On an image that the float model gets right, the margin is the true class's
logit minus the largest other one. An image whose margin a change turns negative is one flip; one that loses a
part of its margin counts as that part, so that layers can be told apart before any image flips.

The images used here must not be among those that judge: see `is_for_ranking`.

Letters used in shapes: N images, C classes, H and W pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlkd_runtime.engines import open_engine
from vlkd_runtime.errors import GuardError

from .calibrated import Calibration
from .graph import CONVOLUTIONS, WEIGHTED, Graph
from .recipes import Recipe, make

MOST_GROUPS = 20
MOST_IMAGES = 96
RANKING_SHARE = 5


def is_for_ranking(image: str) -> bool:
    """Tell whether a held-out image is for ranking layers, one in five, and never for judging what came of it.

    Args:
        image: id of the image, ``<domain>/<class>/<file>``.
    """
    digest = hashlib.sha1(f"ranking\0{image}".encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % RANKING_SHARE == 0


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that stand next to each other in the graph and are kept in float together.

    Attributes:
        layers: their names.
        harm: margin flips when they alone are quantized.
        saved_us: microseconds that quantizing them saves; millions of multiply-adds where nothing was timed.
    """

    layers: tuple[str, ...]
    harm: float
    saved_us: float

    @property
    def price(self) -> float:
        """Harm for each microsecond saved: the layers with the highest go back to float first."""
        return self.harm / max(self.saved_us, 1e-9)


@dataclass(frozen=True, slots=True)
class Ranking:
    """What was learned on the ranking images.

    Attributes:
        domain: the domain that the boldest candidate hurt most there.
        images: how many of its images were used, those with the smallest margins.
        methods: margin flips of the whole recipe by each way of choosing ranges; empty for others.
        groups: by price, highest first.
        unit: what `Group.saved_us` counts.
    """

    domain: str
    images: int
    methods: Mapping[str, float]
    groups: tuple[Group, ...]
    unit: str

    def prefixes(self, shares: Sequence[float] = (0.5, 0.75, 0.9, 0.97)) -> tuple[tuple[str, ...], ...]:
        """Layers to keep in float: the groups that together do these shares of all harm, each set once."""
        harms = np.cumsum([max(group.harm, 0.0) for group in self.groups])
        if not len(harms) or harms[-1] <= 0:
            return ()
        counts = sorted({int(np.searchsorted(harms, share * harms[-1])) + 1 for share in shares})
        return tuple(
            tuple(name for group in self.groups[:count] for name in group.layers)
            for count in counts
            if count < len(self.groups)
        )


@dataclass(frozen=True, slots=True, eq=False)
class RankingImages:
    """Images to rank on.

    Attributes:
        domains: domain of each, N of them.
        labels: ``(N,)`` true classes.
        images: ``(N, H, W, 3)`` uint8, prepared.
    """

    domains: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    images: npt.NDArray[np.uint8]


def rank(
    calibration: Calibration,
    recipe: Recipe,
    given: RankingImages,
    *,
    methods: Sequence[Recipe] = (),
    saved_us: float | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Ranking:
    """Find the worst domain, the ranges that suit it best, and what each group of layers costs it.

    Args:
        calibration: the float graph with its calibration images.
        recipe: the boldest recipe, which failed.
        given: images that will not judge.
        methods: the recipe with other ways of choosing ranges, to compare.
        saved_us: microseconds the whole recipe saves on the target's engine; None where that does not run.
        progress: called with what is done next.

    Raises:
        GuardError: the float model gets no ranking image right.
    """
    with tempfile.TemporaryDirectory(prefix="vlkd-ranking-") as folder:
        out = Path(folder) / "trial.onnx"

        def logits(trial: Recipe, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            make(trial, calibration, out)
            return run(out, images)

        floating = run(calibration.model, given.images)
        margins = margin(floating, given.labels)
        right = margins > 0
        if not right.any():
            msg = (
                f"Expected the float model to get some of {len(right)} ranking images right, found none: it has "
                "no accuracy to keep. Are the classes in the order of its logits?"
            )
            raise GuardError(msg)
        progress("looking for the worst domain")
        moved = margin(logits(recipe, given.images), given.labels)
        domain = _worst(given.domains, margins, moved)
        chosen = _hardest(np.asarray([d == domain for d in given.domains]) & right, margins)
        images, labels, before = given.images[chosen], given.labels[chosen], margins[chosen]
        harms: dict[str, float] = {recipe.method: flips(before, moved[chosen])} if methods else {}
        for other in methods:
            progress(f"trying {other.method} ranges")
            harms[other.method] = flips(before, margin(logits(other, images), labels))
        best = min((recipe, *methods), key=lambda item: harms.get(item.method, float("inf")))
        work = layer_work(calibration)
        layers = _planned(calibration, best, out)
        total = sum(work[name] for name in layers)
        groups: list[Group] = []
        for names in split(layers, MOST_GROUPS):
            progress(f"layers {names[0]} to {names[-1]}" if len(names) > 1 else f"layer {names[0]}")
            others = [name for name in layers if name not in names]
            harm = flips(before, margin(logits(best.keeping(others, len(layers)), images), labels))
            share = sum(work[name] for name in names)
            groups.append(Group(names, harm, share / 1e6 if saved_us is None else saved_us * share / total))
    unit = "million multiply-adds" if saved_us is None else "microseconds"
    ordered = tuple(sorted(groups, key=lambda group: -group.price))
    return Ranking(domain, len(chosen), harms, ordered, unit)


def margin(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the true class's logit minus the largest other one, ``(N,)``, of logits ``(N, C)``."""
    rows = np.arange(len(labels))
    others = logits.astype(np.float64)
    true = others[rows, labels].copy()
    others[rows, labels] = -np.inf
    result: npt.NDArray[np.float64] = true - others.max(axis=1)
    return result


def flips(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> float:
    """Count margin flips: each image as the part of its positive margin that is lost, 1 at most."""
    return float(np.clip((before - after) / before, 0.0, 1.0).sum())


def run(model: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the logits ``(N, C)`` of prepared images: what a candidate computes, not how fast."""
    engine = open_engine(model, engine="ort-cpu")
    try:
        return np.concatenate([engine.run(images[i : i + 1]).logits for i in range(len(images))])
    finally:
        engine.close()


def layer_work(calibration: Calibration) -> dict[str, float]:
    """Return the multiply-adds of each convolution and linear layer, by name."""
    graph = Graph(calibration.folded())
    work: dict[str, float] = {}
    for node in graph.model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        output = [dim or 1 for dim in graph.shapes.get(node.output[0], ())]
        weight = [dim or 1 for dim in graph.shapes.get(node.input[1], ())]
        source = [dim or 1 for dim in graph.shapes.get(node.input[0], ())]
        if node.op_type == "Conv":
            each = float(np.prod(weight[1:]))
        elif node.op_type in CONVOLUTIONS:
            each, output = float(np.prod(weight[1:])), source
        else:
            each = source[-1] if source else 1
        work[node.name] = float(np.prod(output) * each)
    return work


def split(layers: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Divide layers, in graph order, into at most this many groups of nearly equal length."""
    count = min(most, len(layers))
    bounds = [len(layers) * index // count for index in range(count + 1)] if count else []
    return [tuple(layers[a:b]) for a, b in itertools.pairwise(bounds)]


def _planned(calibration: Calibration, recipe: Recipe, out: Path) -> tuple[str, ...]:
    report = make(recipe, calibration, out)
    return tuple(getattr(report, "quantized", ()))


def _worst(domains: Iterable[str], before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> str:
    """The domain that loses most right answers; of equal ones that with most margin flips."""
    names = np.asarray(list(domains))
    lost: dict[str, tuple[float, float]] = {}
    for name in sorted(set(names.tolist())):
        here = names == name
        right = here & (before > 0)
        drop = int(((before > 0) & here).sum()) - int(((after > 0) & here).sum())
        lost[name] = drop / int(here.sum()), flips(before[right], after[right]) / max(int(right.sum()), 1)
    return max(lost, key=lambda name: lost[name])


def _hardest(allowed: npt.NDArray[np.bool_], margins: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Indices of the allowed images with the smallest margins, in their own order."""
    index = np.flatnonzero(allowed)
    return np.sort(index[np.argsort(margins[index], kind="stable")[:MOST_IMAGES]])
