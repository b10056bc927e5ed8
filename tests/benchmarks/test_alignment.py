"""Alignment of student and teacher: every measure against slow loops, its best and worst, what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vlkd_bench.alignment import measure, spectrum
from vlkd_bench.alignmentreport import Alignment, AlignmentReport
from vlkd_runtime.errors import DataError

Array = npt.NDArray[Any]
NEIGHBOURS, RANKED = (1, 3, 5), (2, 3, 5)


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def world(images: int = 60, noise: float = 0.5, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Student, teacher, labels and class vectors; the student is the teacher with noise."""
    random = np.random.default_rng(seed)
    bank = unit(random.normal(size=(6, 16)))
    labels = random.integers(0, 6, images)
    teacher = unit(bank[labels] + 0.3 * random.normal(size=(images, 16)))
    student = unit(teacher + noise * random.normal(size=(images, 16)) / 4)
    return student.astype(np.float32), teacher.astype(np.float32), labels, bank.astype(np.float32)


def slow(student: Array, teacher: Array, labels: Array, bank: Array) -> dict[str, Any]:
    """The definitions, image by image, with distances instead of cosines."""
    s, t, w = (unit(rows.astype(np.float64)) for rows in (student, teacher, bank))
    count = len(s)

    def nearest(vectors: Array, i: int, k: int) -> set[int]:
        others = [j for j in range(count) if j != i]
        return set(sorted(others, key=lambda j: float(np.linalg.norm(vectors[i] - vectors[j])))[:k])

    def inversions(i: int, k: int) -> int:
        to_classes = [float(np.linalg.norm(t[i] - row)) for row in w]
        order = sorted(range(len(w)), key=lambda c: to_classes[c])[:k]
        ours = [float(np.linalg.norm(s[i] - w[c])) for c in order]
        return sum(ours[a] > ours[b] for a in range(k) for b in range(a + 1, k))

    def best(vectors: Array, i: int) -> int:
        return min(range(len(w)), key=lambda c: float(np.linalg.norm(vectors[i] - w[c])))

    every = range(count)
    return {
        "squared_distance": sum(float(((s[i] - t[i]) ** 2).sum()) for i in every) / count,
        "angle_deg": sum(math.degrees(math.acos(float(s[i] @ t[i]))) for i in every) / count,
        "m_rel": sum(min(every, key=lambda j: float(np.linalg.norm(t[j] - s[i]))) == i for i in every)
        / count,
        "m_neigh": {
            k: sum(len(nearest(s, i, k) & nearest(t, i, k)) for i in every) / (k * count) for k in NEIGHBOURS
        },
        "m_vlalign": {k: sum(inversions(i, k) for i in every) / count for k in RANKED},
        "student_accuracy": sum(best(s, i) == labels[i] for i in every) / count,
        "teacher_accuracy": sum(best(t, i) == labels[i] for i in every) / count,
        "agreement": sum(best(s, i) == best(t, i) for i in every) / count,
    }


def check(found: Alignment, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9), name


def measured(*arrays: Any, **options: Any) -> AlignmentReport:
    return measure(*arrays, neighbours=NEIGHBOURS, ranked_labels=RANKED, **options)


@pytest.mark.parametrize("noise", [0.2, 1.0, 4.0], ids=["near", "middling", "far"])
def test_every_measure_is_what_slow_loops_say(noise: float) -> None:
    arrays = world(noise=noise)
    found = measured(*arrays)
    check(found.overall, slow(*arrays))
    assert 0 < found.overall.m_neigh[3] < 1 and found.overall.m_vlalign[5] > 0  # the case says something


def test_a_domain_is_measured_among_its_own_images() -> None:
    student, teacher, labels, bank = world()
    domains = ["photo" if index % 3 else "sketch" for index in range(len(labels))]
    found = measured(student, teacher, labels, bank, domains)
    assert list(found.domains) == ["sketch", "photo"]
    for name, part in found.domains.items():
        rows = [index for index, domain in enumerate(domains) if domain == name]
        check(part, slow(student[rows], teacher[rows], labels[rows], bank))
    check(found.overall, slow(student, teacher, labels, bank))


def test_a_perfect_student_has_the_best_values() -> None:
    _, teacher, labels, bank = world()
    found = measured(teacher, teacher, labels, bank).overall
    assert found.squared_distance == pytest.approx(0, abs=1e-12)
    assert found.angle_deg == pytest.approx(0, abs=1e-4)
    assert found.m_rel == found.agreement == 1
    assert set(found.m_neigh.values()) == {1} and set(found.m_vlalign.values()) == {0}
    assert found.student_accuracy == found.teacher_accuracy


def test_a_student_with_its_images_mixed_up_is_worse_in_everything() -> None:
    student, teacher, labels, bank = world(noise=0.2)
    good = measured(student, teacher, labels, bank).overall
    bad = measured(np.roll(student, 7, axis=0), teacher, labels, bank).overall
    for name in ("m_rel", "student_accuracy", "agreement"):
        assert getattr(bad, name) < getattr(good, name) - 0.3
    for name in ("squared_distance", "angle_deg"):
        assert getattr(bad, name) > 2 * getattr(good, name)
    for k in NEIGHBOURS:
        assert bad.m_neigh[k] < good.m_neigh[k] / 2
    for k in RANKED:
        assert bad.m_vlalign[k] > 2 * good.m_vlalign[k]


def test_a_student_that_ranks_everything_backwards_has_every_pair_turned() -> None:
    _, teacher, labels, bank = world()
    found = measured(-teacher, teacher, labels, bank).overall
    assert found.m_vlalign == {2: 1, 3: 3, 5: 10}
    assert found.angle_deg == pytest.approx(180, abs=1e-4)


@pytest.mark.parametrize("block_bytes", [1, 8 * 60 * 7, 1 << 30], ids=["a row", "seven rows", "all"])
def test_the_size_of_a_block_changes_nothing(block_bytes: int) -> None:
    student, teacher, labels, bank = world()
    # Ties must not depend on it either: two images are there twice.
    student[10:12], teacher[10:12] = student[20:22], teacher[20:22]
    whole = measured(student, teacher, labels, bank)
    found = measured(student, teacher, labels, bank, block_bytes=block_bytes)
    for name in Alignment.__slots__:
        assert getattr(found.overall, name) == pytest.approx(getattr(whole.overall, name), abs=1e-12), name


@pytest.mark.parametrize("collapsed", ["student", "teacher"])
def test_where_all_are_equally_near_a_match_is_chance(collapsed: str) -> None:
    student, teacher, labels, bank = world()
    alike = np.repeat(teacher[:1], len(teacher), axis=0)
    pair = (alike, teacher) if collapsed == "student" else (student, alike)
    assert measured(*pair, labels, bank).overall.m_rel == pytest.approx(1 / 60)


def test_two_equal_pictures_share_their_hits() -> None:
    _, teacher, labels, bank = world()
    teacher[1] = teacher[0]
    assert measured(teacher, teacher, labels, bank).overall.m_rel == pytest.approx(59 / 60)


def test_a_sample_of_queries_is_named_and_searched_among_all_images() -> None:
    arrays = world(images=300, noise=3)
    found = measured(*arrays, most_queries=100, seed=3)
    assert (found.overall.images, found.overall.queries, found.seed) == (300, 100, 3)
    assert "100 images drawn with seed 3" in found.markdown() and "among all 300" in found.markdown()
    assert found == measured(*arrays, most_queries=100, seed=3)
    assert found.overall.m_rel != measured(*arrays, most_queries=100, seed=4).overall.m_rel

    whole = measured(*arrays)
    assert "drawn with seed" not in whole.markdown()
    assert found.overall.m_vlalign == whole.overall.m_vlalign  # cheap, so never sampled
    assert found.overall.m_rel == pytest.approx(whole.overall.m_rel, abs=0.1)
    # Searched among the 100 images alone, a match would be easier.
    rows = np.sort(np.random.default_rng(3).choice(300, 100, replace=False))
    alone = measured(*(array[rows] for array in arrays[:3]), arrays[3])
    assert alone.overall.m_rel > found.overall.m_rel


def test_neighbourhoods_larger_than_the_data_are_cut() -> None:
    found = measure(*world(images=4))
    assert list(found.overall.m_neigh) == [3] and list(found.overall.m_vlalign) == [2, 3, 5]
    student, teacher, labels, bank = world()
    found = measure(student, teacher, labels % 2, bank[:2])
    assert list(found.overall.m_vlalign) == [2]


def test_the_spectrum_is_that_of_the_class_vectors() -> None:
    bank = world()[3]
    found = spectrum(bank)
    exact = unit(bank.astype(np.float64))
    values = np.linalg.svd(exact, compute_uv=False) ** 2 / 6
    pairs = [float(exact[a] @ exact[b]) for a in range(6) for b in range(6) if a != b]
    assert found.eigenvalues == pytest.approx(tuple(values))
    assert sum(found.eigenvalues) == pytest.approx(1)
    assert found.mean_cosine == pytest.approx(sum(pairs) / len(pairs))
    assert found.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in values)))


@pytest.mark.parametrize(
    ("bank", "rank", "cosine", "values"),
    [
        (np.eye(4, 9), 4, 0, 4),
        (np.repeat(np.eye(1, 9), 4, axis=0), 1, 1, 4),
        (np.concatenate([np.eye(3), -np.eye(3)]), 3, -0.2, 3),
    ],
    ids=["orthogonal", "all alike", "more classes than sizes"],
)
def test_effective_rank_counts_directions(bank: Array, rank: float, cosine: float, values: int) -> None:
    found = spectrum(bank)
    assert found.effective_rank == pytest.approx(rank)
    assert found.mean_cosine == pytest.approx(cosine)
    assert len(found.eigenvalues) == values


def test_a_report_is_written_three_ways() -> None:
    student, teacher, labels, bank = world()
    domains = ["photo" if index % 3 else "sketch" for index in range(len(labels))]
    found = measured(student, teacher, labels, bank, domains)
    plain = found.as_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["overall"]["m_neigh"]["3"] == found.overall.m_neigh[3]
    assert plain["domains"]["photo"]["images"] == 40 and plain["text_bank"]["classes"] == 6

    named = AlignmentReport(
        found.overall, found.domains, found.bank, 0, "tiny", "demo", "a world", ("sketch",), ("A stand-in.",)
    )
    text = named.markdown()
    assert "| measure | better | by chance | all | sketch (held out) | photo |" in text
    assert "> A stand-in." in text and "Student tiny; teacher demo; images a world." in text
    assert f"| M_rel, percent | higher | 1.7 | {100 * found.overall.m_rel:.1f} |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}
    assert named.picture().startswith(b"\x89PNG")


def with_nan(rows: Array) -> Array:
    rows = rows.copy()
    rows[3, 2] = np.nan
    return rows


S, T, L, W = world(images=12)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ((S[:-1], T, L, W), r"student and teacher.*\(11, 16\), \(12, 16\)"),
        ((unit(S[:, :8]), T, L, W), r"\(12, 8\), \(12, 16\) and \(6, 16\)"),
        ((S, T, L, unit(W[:, :8])), r"class vectors.*\(6, 8\)"),
        ((S[0], T, L, W), r"student: .*shape \(N, D\).*\(16,\)"),
        ((S.astype(np.int64), T, L, W), "student: expected floating-point.*int64"),
        ((with_nan(S), T, L, W), "student: expected finite rows.*nan in row 3 and 0 more"),
        ((S, with_nan(T), L, W), "teacher: expected finite rows"),
        ((S, 2 * T, L, W), "teacher: expected finite rows of length 1, found length 2 in row 0 and 11 more"),
        ((S, T, L, 1.01 * W), "class vectors: .* length 1.01 in row 0"),
        ((S, T, 0 * L, W[:1]), "class vectors: .*two classes.*one alone"),
        ((S[:1], T[:1], L[:1], W), "student: .*two images"),
        ((S, T, L[:-1], W), r"labels: .*\(12,\).*\(11,\)"),
        ((S, T, L + 0.5, W), "labels: expected integers"),
        ((S, T, L - 6, W), "labels: expected 0 to 5"),
        ((S, T, L, W[:2]), "labels: expected 0 to 1"),
        ((S, T, L, W, ["a"] * 11), "domains: expected one for each of 12 images, found 11"),
        ((S, T, L, W, ["a"] * 11 + ["b"]), "two images in each domain, found one in b"),
    ],
    ids=[
        "fewer student rows",
        "student of another size",
        "class vectors of another size",
        "one row",
        "integers",
        "student not a number",
        "teacher not a number",
        "teacher not of unit length",
        "class vectors not of unit length",
        "one class",
        "one image",
        "too few labels",
        "labels no integers",
        "labels below 0",
        "labels above C",
        "too few domains",
        "a domain of one image",
    ],
)
def test_what_cannot_be_compared_is_refused(arrays: tuple[Any, ...], match: str) -> None:
    with pytest.raises(DataError, match=match):
        measure(*arrays)


@pytest.mark.parametrize(
    "options",
    [{"neighbours": (0, 3)}, {"ranked_labels": (1,)}, {"most_queries": 0}],
    ids=["no neighbour", "one label", "no query"],
)
def test_sizes_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="most_queries from 1 and ranked_labels from 2"):
        measure(S, T, L, W, **options)
