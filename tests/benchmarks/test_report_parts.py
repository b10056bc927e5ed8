"""What the reports put together beyond plain numbers: changed pictures, class vectors, history, Pareto front."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vlkd_bench.baselines import Entry
from vlkd_bench.benchrecord import BenchRecord
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.records import Record
from vlkd_bench.regression import assess
from vlkd_bench.report import render_regression_html
from vlkd_bench.report.canvas import folded, spread
from vlkd_bench.report.flips import IN_ALL, MOST_BYTES, NOTHING, PER_DOMAIN, find_flips, thumbnail
from vlkd_bench.report.heatmap import draw_heatmap
from vlkd_bench.report.history import MOST_POINTS, bench_history, build_history
from vlkd_bench.report.plots import pareto_front
from vlkd_bench.report.similarity import MOST_CLASSES, MOST_PAIRS, class_similarity
from vlkd_bench.samples import ABSENT
from vlkd_runtime.errors import UnavailableError

NAMES = ("cat", "dog", "fish")


def row(image: str, label: int, prediction: int, probability: float | None = 0.5) -> PredictionRow:
    return PredictionRow(image, image.partition("/")[0], label, prediction, probability)


def test_flips_are_counted_and_the_surest_losses_come_first() -> None:
    before = [row("a/1", 0, 0), row("a/2", 0, 0), row("a/3", 0, 1), row("a/4", 0, 1), row("a/5", 0, 0)]
    before += [row("b/1", ABSENT, 0), row("b/2", 1, 1)]
    after = [
        row("a/1", 0, 1, 0.6),
        row("a/2", 0, 2, 0.9),
        row("a/3", 0, 0),
        row("a/4", 0, 2),
        row("a/5", 0, 0),
    ]
    after += [row("b/1", ABSENT, 2), row("b/3", 1, 1)]  # each answered an image of b that the other did not
    held_out, other = find_flips(before, after, NAMES, {}, first=("b",))
    assert (held_out.domain, held_out.images, held_out.lost, held_out.won, held_out.other) == (
        "b",
        1,
        0,
        0,
        1,
    )
    assert held_out.shown[0].label == NOTHING
    assert (other.domain, other.images, other.lost, other.won, other.other) == ("a", 5, 2, 1, 1)
    assert [flip.image for flip in other.shown] == ["a/2", "a/1", "a/4", "a/3"]
    assert [flip.kind for flip in other.shown] == ["lost", "lost", "other", "won"]
    assert (other.shown[0].before, other.shown[0].after, other.shown[0].after_probability) == (
        "cat",
        "fish",
        0.9,
    )


@pytest.mark.parametrize("domains", [1, 3, 40, 100])
def test_flips_are_bounded_in_number(domains: int) -> None:
    images = [f"d{d}/{i}" for d in range(domains) for i in range(12)]
    found = find_flips([row(i, 0, 0) for i in images], [row(i, 0, 1) for i in images], NAMES, {})
    shown = [len(group.shown) for group in found]
    assert len(found) == domains and sum(shown) <= IN_ALL and max(shown) <= PER_DOMAIN
    assert all(group.lost == 12 for group in found)
    assert min(shown) >= 1 or domains > IN_ALL


def test_thumbnails_are_small_upright_jpegs_and_missing_where_files_are(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 1400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    data = base64.b64decode(thumbnail(tmp_path / "wide.png"))
    assert len(data) <= MOST_BYTES
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG" and image.size == (96, 48)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    assert thumbnail(tmp_path / "broken.jpg") == thumbnail(tmp_path / "none.png") == ""


def test_class_similarity_is_that_of_the_vectors() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"class {i}" for i in range(60)]
    confused = [row("a/1", 4, 7), row("a/2", 7, 4), row("a/3", 4, 4), row("a/4", ABSENT, 4)]
    found = class_similarity(names, vectors, confused)
    assert found is not None and found.classes == 60
    assert len(found.names) == len(set(found.names)) == len(found.cosines) == MOST_CLASSES
    for first, cosines in zip(found.names, found.cosines, strict=True):
        for second, value in zip(found.names, cosines, strict=True):
            expected = sum(
                float(a) * float(b)
                for a, b in zip(vectors[names.index(first)], vectors[names.index(second)], strict=True)
            )
            assert value == pytest.approx(expected, abs=1e-4)
    every = sorted(
        ((float(vectors[i] @ vectors[j]), i, j) for i in range(60) for j in range(i)), reverse=True
    )
    assert [{pair.first, pair.second} for pair in found.pairs] == [
        {names[i], names[j]} for _, i, j in every[:MOST_PAIRS]
    ]
    # A class that is nearest to another is shown with it.
    assert {found.pairs[0].first, found.pairs[0].second} <= set(found.names)
    ours = [pair.confused for pair in found.pairs if {pair.first, pair.second} == {"class 4", "class 7"}]
    assert ours in ([], [2])
    assert class_similarity(["one"], vectors[:1]) is None


def test_confusions_are_counted_in_both_directions() -> None:
    vectors = np.eye(3, dtype=np.float32)
    rows = [row("a/1", 0, 1), row("a/2", 1, 0), row("a/3", 1, 0), row("a/4", 2, 2)]
    found = class_similarity(NAMES, vectors, rows)
    assert found is not None and found.images == 4
    assert {(p.first, p.second): p.confused for p in found.pairs} == {
        ("cat", "dog"): 3,
        ("cat", "fish"): 0,
        ("dog", "fish"): 0,
    }
    drawn = draw_heatmap(found)
    assert drawn.wide.count("<rect") == drawn.narrow.count("<rect") == 9
    same = class_similarity(("a", "<b>"), np.ones((2, 1), np.float32))
    assert (
        same is not None and "&lt;b&gt;" in draw_heatmap(same).wide and "nan" not in draw_heatmap(same).wide
    )


def front_by_comparison(points: list[tuple[float, float]]) -> set[tuple[float, float]]:
    """Those that no other is at least as good as in both and better in one."""
    return {p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}


def test_the_pareto_front_is_what_no_other_beats() -> None:
    rng = np.random.default_rng(2)
    for size in (1, 2, 5, 30):
        points = [(float(x), float(y)) for x, y in rng.integers(0, 8, (size, 2))]
        assert set(pareto_front(points)) == front_by_comparison(points)


@pytest.mark.parametrize(
    ("wanted", "gap", "expected"),
    [
        pytest.param([0.1, 0.5, 0.9], 0.2, [0.1, 0.5, 0.9], id="room enough"),
        pytest.param([0.5, 0.5], 0.2, [0.4, 0.6], id="equal"),
        pytest.param([0.0, 0.0, 0.05], 0.1, [0.0, 0.1, 0.2], id="at the bottom"),
        pytest.param([0.98, 1.0], 0.1, [0.9, 1.0], id="at the top"),
        pytest.param([0.2, 0.3, 0.4, 0.9], 0.2, [0.1, 0.3, 0.5, 0.9], id="a block of three"),
        pytest.param([], 0.1, [], id="none"),
    ],
)
def test_labels_are_spread_as_little_as_it_takes(
    wanted: list[float], gap: float, expected: list[float]
) -> None:
    assert spread(wanted, gap) == pytest.approx(expected)


def test_history_holds_accepted_runs_other_runs_and_this_one_once(record: Callable[..., BenchRecord]) -> None:
    first, second, now = (
        record(when=f"2024-05-0{day}T07:00:00+00:00", digest=name * 64)
        for day, name in ((1, "a"), (2, "b"), (4, "c"))
    )
    slower = assess(
        record([[3.0] * 50] * 4, cold_ms=(400.0,) * 4), record([[2.0] * 50] * 4, cold_ms=(400.0,) * 4)
    )
    assert slower.regressions
    entry = Entry("2024-05-01T08:00:00+00:00", "agreed on", slower.regressions, first)
    points = bench_history([entry], [now, second, first, second], now)
    assert [(point.bundle[0], point.kind) for point in points] == [
        ("a", "accepted"),
        ("b", "run"),
        ("c", "now"),
    ]
    assert points[0].worse == tuple(m.name for m in slower.regressions) and points[0].reason == "agreed on"
    assert points[2].p50_ms == now.latency["call"].stats.p50_ms
    again = bench_history([replace(entry, record=now)], [], now)
    assert [point.kind for point in again] == ["accepted"]


def test_a_log_of_builds_is_read_whatever_it_holds() -> None:
    stamp = datetime(2024, 5, 6, tzinfo=timezone.utc).isoformat()
    records = [Record("build", stamp, {"p50_ms": 1.5, "mean": "x", "size_bytes": None, "outcome": "fail"})]
    records += [Record("build", stamp, {"p50_ms": True, "mean": 0.5})] * (MOST_POINTS + 3)
    points = build_history(records)
    assert len(points) == MOST_POINTS and [p.kind for p in points].count("now") == 1
    assert (points[0].p50_ms, points[0].mean) == (None, 0.5)
    (only,) = build_history(records[:1])
    assert (only.p50_ms, only.mean, only.size_bytes, only.reason) == (1.5, None, None, "fail")
    assert build_history([]) == ()


def test_the_regression_page_shows_what_there_is(
    record: Callable[..., BenchRecord], rows: Callable[..., tuple[PredictionRow, ...]], tmp_path: Path
) -> None:
    before, after = rows({"<i>sketch": 40}), rows({"<i>sketch": 40}, {"<i>sketch": [3]})
    base, now = record(rows=before), record(rows=after, digest="b" * 64, when="2024-05-07T07:00:00+00:00")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "3.png")
    flips = find_flips(before, after, NAMES, {after[3].image: tmp_path / "3.png"})
    page = render_regression_html(assess(now, base), flips=flips, history=bench_history([], [base], now))
    found = re.findall(r'<section id="(\w+)"', page)
    assert found == ["metrics", "accuracy", "flips", "latency", "history", "origin"]
    assert page.count("<svg") == 8 and page.count('src="data:image/jpeg;base64,') == 1
    assert (
        "<i>sketch" not in page
        and "<script" not in page
        and "http" not in page.replace("http://www.w3.org", "")
    )
    bare = render_regression_html(assess(record(), record()))
    assert re.findall(r'<section id="(\w+)"', bare) == ["metrics", "latency", "origin"]
    other = render_regression_html(assess(replace(now, setup=replace(now.setup, threads=4)), base))
    assert re.findall(r'<section id="(\w+)"', other) == ["origin"] and "<svg" not in other


def test_without_matplotlib_the_pages_keep_their_tables(
    record: Callable[..., BenchRecord],
    rows: Callable[..., tuple[PredictionRow, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that only runs and judges has no use for it."""
    now, base = (
        record(rows=rows({"sketch": 40})),
        record(rows=rows({"sketch": 40}), when="2024-05-05T07:00:00+00:00"),
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = render_regression_html(assess(now, base), history=bench_history([], [base], now))
    assert re.findall(r'<section id="(\w+)"', page) == ["metrics", "accuracy", "latency", "history", "origin"]
    assert "<svg" not in page and "<figure" not in page and page.count("<table") == 4
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UnavailableError, match="pip install jinja2, or leave the page out"):
        render_regression_html(assess(now, base))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("int8-percentile", "int8-percentile", id="short"),
        pytest.param("int8-percentile-float17-d33a", "int8-percentile-\nfloat17-d33a", id="two lines"),
        pytest.param("a-" + "b" * 40, "a-\n" + "b" * 18 + "…", id="too long for two"),
        pytest.param("c" * 40, "c" * 18 + "…", id="no hyphen"),
    ],
)
def test_a_long_name_is_folded_at_a_hyphen(name: str, expected: str) -> None:
    narrow = Figure(figsize=(2, 2), dpi=50).add_subplot()
    assert folded(narrow, name) == expected
