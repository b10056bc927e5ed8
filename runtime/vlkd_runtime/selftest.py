"""Runs an engine on the golden samples and refuses it where its answers differ from the desk's.

Letters: K samples, D sizes of the joint space, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from .engines.base import Engine, EngineOutput
from .errors import SelfTestError
from .golden import Golden
from .manifest import GoldenTolerance

# An engine whose embedding is not unit length computes something else, even if the direction agrees.
_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """How close an engine came to the golden outputs.

    Attributes:
        samples: Number of samples run.
        min_cosine: Smallest cosine between an embedding and its golden one.
        max_logit_gap: Largest absolute difference of any logit.
    """

    samples: int
    min_cosine: float
    max_logit_gap: float


def run_self_test(engine: Engine, golden: Golden, tolerance: GoldenTolerance) -> SelfTestResult:
    """Compare an engine's answers with the golden ones.

    Where all logits are within the tolerance, the label can only differ on samples whose golden margin is
    at most twice the tolerance; so a changed label on a clear sample always fails, and the message says so.

    Args:
        engine: The engine to test.
        golden: Samples with expected outputs.
        tolerance: How far the outputs may differ.

    Raises:
        SelfTestError: A sample differs by more; the message names the engine, the sample and the gap.
    """
    output = run_batches(engine, golden.images)
    if (output.embedding.shape, output.logits.shape) != (golden.embedding.shape, golden.logits.shape):
        # A graph may declare other shapes than it computes.
        found = f"{output.embedding.shape} and {output.logits.shape}"
        expected = f"{golden.embedding.shape} and {golden.logits.shape}"
        _fail(engine, 0, f"embedding and logits have the shapes {found}, expected {expected}")
    cosines: list[float] = []
    gaps: list[float] = []
    for sample in range(len(golden.images)):
        embedding = output.embedding[sample].astype(np.float64)
        golden_embedding = golden.embedding[sample].astype(np.float64)
        norm = float(np.linalg.norm(embedding))
        if not abs(norm - 1) <= _NORM_TOLERANCE:
            _fail(engine, sample, f"its embedding has length {norm:.6g}, expected 1")
        cosine = float(embedding @ golden_embedding) / (norm * float(np.linalg.norm(golden_embedding)))
        gap = float(np.abs(output.logits[sample].astype(np.float64) - golden.logits[sample]).max())
        # Written so that NaN fails.
        if not cosine >= tolerance.min_cosine:
            _fail(
                engine,
                sample,
                f"cosine to the golden embedding {cosine:.6f}, expected at least {tolerance.min_cosine:g}",
            )
        if not gap <= tolerance.max_logit_gap:
            change = _label_change(output.logits[sample], golden.logits[sample])
            _fail(
                engine,
                sample,
                f"logits differ by {gap:.6g}, expected at most {tolerance.max_logit_gap:g}{change}",
            )
        cosines.append(cosine)
        gaps.append(gap)
    return SelfTestResult(len(gaps), min(cosines), max(gaps))


def run_batches(engine: Engine, images: npt.NDArray[np.uint8]) -> EngineOutput:
    """Run any number of images through an engine of fixed batch; the last batch is filled up with zeros.

    Args:
        engine: The engine.
        images: (K, H, W, 3) uint8, K at least 1.
    """
    batch = engine.info.batch
    if len(images) == batch:
        return engine.run(images)
    outputs: list[EngineOutput] = []
    for start in range(0, len(images), batch):
        block = images[start : start + batch]
        if len(block) < batch:
            block = np.concatenate([block, np.zeros((batch - len(block), *block.shape[1:]), np.uint8)])
        outputs.append(engine.run(block))
    return EngineOutput(
        np.concatenate([output.embedding for output in outputs])[: len(images)],
        np.concatenate([output.logits for output in outputs])[: len(images)],
    )


def _label_change(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> str:
    before, after = int(expected.argmax()), int(found.argmax())
    return f", and the label changes from {before} to {after}" if before != after else ""


def _fail(engine: Engine, sample: int, problem: str) -> NoReturn:
    info = engine.info
    msg = (
        f"self-test of engine {info.name} ({info.provider} {info.version}) failed on golden sample {sample}: "
        f"{problem}; use another engine or build the bundle for this one"
    )
    raise SelfTestError(msg)
