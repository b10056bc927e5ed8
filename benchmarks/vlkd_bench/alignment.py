"""How much of the teacher's space a student kept: distances, neighbours and rankings, from embeddings alone.

Letters used in shapes: N images, Q images asked about, D embedding size, C classes.

References:
    Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability", ICCV 2023:
    distance and angle, M_rel, M_neigh, M_vlalign, and the text bank's eigenvalues and mean cosine.
    Friedman and Dieng, "The Vendi Score", TMLR 2023 (effective rank as the exponential of an entropy).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlkd_runtime.errors import DataError

from .alignmentreport import Alignment, AlignmentReport, TextBank

FloatArray = npt.NDArray[np.float64]

NEIGHBOURS = (3, 5, 10)
RANKED_LABELS = (2, 3, 5)
# Three products of Q x N x D are what a report costs; beyond this many a sample says the same.
MOST_QUERIES = 20_000
# One block of similarities; about eight such arrays are alive at once.
_BLOCK_BYTES = 32 << 20
# Cosines closer than this are a tie: equal vectors differ by the rounding of the product.
_TIE = 1e-9
# What half precision on a device leaves of unit length; class vectors are held to what their format asks.
_EMBEDDING_NORM, _BANK_NORM = 1e-2, 1e-3


def measure(
    student: npt.NDArray[np.floating[Any]],
    teacher: npt.NDArray[np.floating[Any]],
    labels: Sequence[int] | npt.NDArray[np.integer[Any]],
    class_vectors: npt.NDArray[np.floating[Any]],
    domains: Sequence[str] | None = None,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    ranked_labels: Sequence[int] = RANKED_LABELS,
    most_queries: int = MOST_QUERIES,
    seed: int = 0,
    block_bytes: int = _BLOCK_BYTES,
) -> AlignmentReport:
    """Compare a student's embeddings with the teacher's; memory is two float64 copies and a few blocks.

    Args:
        student: unit rows ``(N, D)``.
        teacher: unit rows ``(N, D)`` of the same images.
        labels: index of each image's class ``(N,)``.
        class_vectors: unit rows ``(C, D)``: the text bank.
        domains: domain of each image; None for one nameless domain.
        neighbours: values of k for M_neigh; cut at N - 1.
        ranked_labels: values of k for M_vlalign; cut at C.
        most_queries: above it, M_rel and M_neigh ask about a sample of images, still among all of them.
        seed: of that sample.
        block_bytes: size of one block of similarities.

    Raises:
        DataError: shapes that do not match, numbers that are not finite, rows that are not of unit length,
            a label out of range, fewer than two classes, or fewer than two images in all or in a domain.
    """
    bank = _unit(class_vectors, "class vectors", "C", _BANK_NORM)
    own, theirs = (
        _unit(rows, what, "N", _EMBEDDING_NORM) for rows, what in ((student, "student"), (teacher, "teacher"))
    )
    truth = np.asarray(labels)
    _check(own, theirs, truth, bank, domains)
    if min(*neighbours, *(k - 1 for k in ranked_labels), most_queries) < 1:
        msg = (
            "Expected neighbours and most_queries from 1 and ranked_labels from 2, found "
            f"{[*neighbours]}, {most_queries} and {[*ranked_labels]}."
        )
        raise DataError(msg)

    def part(rows: npt.NDArray[np.intp]) -> Alignment:
        near = sorted({min(k, len(rows) - 1) for k in neighbours})
        ranked = sorted({min(k, len(bank)) for k in ranked_labels})
        queries = np.arange(len(rows))
        if len(rows) > most_queries:
            queries = np.sort(np.random.default_rng(seed).choice(len(rows), most_queries, replace=False))
        s, t = (own, theirs) if len(rows) == len(own) else (own[rows], theirs[rows])
        cosines = np.clip(np.einsum("nd,nd->n", s, t), -1, 1)
        m_rel, m_neigh = _retrieve(s, t, queries, near, block_bytes)
        return Alignment(
            images=len(rows),
            queries=len(queries),
            squared_distance=float((2 - 2 * cosines).mean()),
            angle_deg=float(np.degrees(np.arccos(cosines)).mean()),
            m_rel=m_rel,
            m_neigh=m_neigh,
            **_rank(s, t, truth[rows], bank, ranked, block_bytes),
        )

    everything = np.arange(len(own))
    named = np.asarray(domains if domains is not None else [], dtype=np.str_)
    by_domain = {name: part(np.flatnonzero(named == name)) for name in dict.fromkeys(domains or ())}
    return AlignmentReport(part(everything), by_domain, spectrum(bank), seed)


def spectrum(class_vectors: npt.NDArray[np.floating[Any]]) -> TextBank:
    """Measure the spread of class vectors, unit rows ``(C, D)``.

    Raises:
        DataError: as `measure`.
    """
    bank = _unit(class_vectors, "class vectors", "C", _BANK_NORM)
    count = len(bank)
    total = bank.sum(axis=0)
    # The smaller of the two Gram matrices; both have the same eigenvalues but for zeros.
    gram = bank @ bank.T if count <= bank.shape[1] else bank.T @ bank
    values = np.clip(np.linalg.eigvalsh(gram)[::-1] / count, 0, None)
    shares = values[values > 0] / values.sum()
    return TextBank(
        classes=count,
        mean_cosine=float((total @ total - count) / (count * (count - 1))),
        eigenvalues=tuple(float(value) for value in values),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
    )


def _retrieve(
    student: FloatArray,
    teacher: FloatArray,
    queries: npt.NDArray[np.intp],
    sizes: Sequence[int],
    block_bytes: int,
) -> tuple[float, dict[int, float]]:
    """M_rel and M_neigh of some rows among all."""
    hits, shared = 0.0, dict.fromkeys(sizes, 0)
    for rows in _blocks(queries, len(student), block_bytes):
        across = student[rows] @ teacher.T
        gap = across - across[np.arange(len(rows)), rows, None]
        hits += float(((gap <= _TIE).all(axis=1) / (np.abs(gap) <= _TIE).sum(axis=1)).sum())
        ours, theirs = _to_others(student, rows), _to_others(teacher, rows)
        for k in sizes:
            shared[k] += int((_nearest(ours, k) & _nearest(theirs, k)).sum())
    return hits / len(queries), {k: count / (k * len(queries)) for k, count in shared.items()}


def _to_others(vectors: FloatArray, rows: npt.NDArray[np.intp]) -> FloatArray:
    """Cosines ``(Q, N)`` of some rows to all but themselves."""
    cosines: FloatArray = vectors[rows] @ vectors.T
    cosines[np.arange(len(rows)), rows] = -np.inf
    return cosines


def _nearest(cosines: FloatArray, k: int) -> npt.NDArray[np.bool_]:
    """Mark the k largest of each row ``(Q, N)``; of equals the first."""
    last = np.partition(cosines, -k, axis=1)[:, -k, None]
    above = cosines > last + _TIE
    level = ~above & (cosines >= last - _TIE)
    room = k - above.sum(axis=1, keepdims=True)
    marked: npt.NDArray[np.bool_] = above | (level & (np.cumsum(level, axis=1) <= room))
    return marked


def _rank(
    student: FloatArray,
    teacher: FloatArray,
    labels: npt.NDArray[Any],
    bank: FloatArray,
    sizes: Sequence[int],
    block_bytes: int,
) -> dict[str, Any]:
    """M_vlalign and the accuracies, by the names that `Alignment` has for them."""
    deepest = max(sizes)
    by_later = np.zeros(deepest, dtype=np.int64)  # inversions by the rank of the pair's later class
    right, taught, same = 0, 0, 0
    for rows in _blocks(np.arange(len(student)), len(bank), block_bytes):
        ours, theirs = student[rows] @ bank.T, teacher[rows] @ bank.T
        order = np.argsort(-theirs, axis=1, kind="stable")[:, :deepest]
        ranked = np.take_along_axis(ours, order, axis=1)
        for earlier in range(deepest - 1):
            turned = ranked[:, earlier + 1 :] > ranked[:, earlier, None] + _TIE
            by_later[earlier + 1 :] += turned.sum(axis=0)
        best, theirs_best = ours.argmax(axis=1), order[:, 0]
        right += int((best == labels[rows]).sum())
        taught += int((theirs_best == labels[rows]).sum())
        same += int((best == theirs_best).sum())
    count = len(student)
    return {
        "m_vlalign": {k: float(by_later[:k].sum()) / count for k in sizes},
        "student_accuracy": right / count,
        "teacher_accuracy": taught / count,
        "agreement": same / count,
    }


def _blocks(rows: npt.NDArray[np.intp], width: int, block_bytes: int) -> Iterator[npt.NDArray[np.intp]]:
    step = max(1, block_bytes // (8 * width))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _unit(rows: npt.NDArray[Any], what: str, letter: str, tolerance: float) -> FloatArray:
    """Rows as float64 of exactly unit length, after checking that they nearly are."""
    found = np.asarray(rows)
    if found.ndim != 2 or found.dtype.kind != "f" or len(found) < 2 or found.shape[1] == 0:
        noun = "classes" if letter == "C" else "images"
        msg = (
            f"{what}: expected floating-point numbers of shape ({letter}, D) with at least two {noun}, found "
            f"{found.dtype} {found.shape}; one alone has nothing to be compared with."
        )
        raise DataError(msg)
    exact = found.astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", exact, exact))
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= tolerance))  # written so that NaN counts as wrong
    if wrong.size:
        row = int(wrong[0])
        msg = (
            f"{what}: expected finite rows of length 1, found length {norms[row]:.6g} in row {row} and "
            f"{wrong.size - 1} more; normalise them, and look for what made any that are not finite."
        )
        raise DataError(msg)
    exact /= norms[:, None]
    return exact


def _check(
    student: FloatArray,
    teacher: FloatArray,
    labels: npt.NDArray[Any],
    bank: FloatArray,
    domains: Sequence[str] | None,
) -> None:
    """Hold the arrays to each other."""
    if student.shape != teacher.shape or bank.shape[1] != student.shape[1]:
        msg = (
            f"Expected student and teacher (N, D) and class vectors (C, D) of one D, found {student.shape}, "
            f"{teacher.shape} and {bank.shape}: embed the same images, with the teacher the student learned from."
        )
        raise DataError(msg)
    if labels.shape != (len(student),) or labels.dtype.kind not in "iu":
        msg = f"labels: expected integers of shape ({len(student)},), found {labels.dtype} {labels.shape}."
        raise DataError(msg)
    if labels.min() < 0 or labels.max() >= len(bank):
        msg = (
            f"labels: expected 0 to {len(bank) - 1}, one of {len(bank)} class vectors, found "
            f"{labels.min()} to {labels.max()}; give the class vectors in label order."
        )
        raise DataError(msg)
    if domains is None:
        return
    if len(domains) != len(student):
        msg = f"domains: expected one for each of {len(student)} images, found {len(domains)}."
        raise DataError(msg)
    alone = [name for name, count in Counter(domains).items() if count < 2]
    if alone:
        msg = f"Expected at least two images in each domain, found one in {', '.join(alone)}: add some or leave it out."
        raise DataError(msg)
