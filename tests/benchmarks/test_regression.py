"""The regression verdict: what must be caught, what must not, and every form in which it is said."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from vlkd_bench.benchrecord import BenchRecord
from vlkd_bench.metrics import Metric, Tolerance
from vlkd_bench.noise import compare_runs, compare_turns
from vlkd_bench.regression import RegressionReport, assess
from vlkd_bench.report import (
    render_junit,
    render_regression_html,
    render_regression_lines,
    render_regression_markdown,
)
from vlkd_runtime.errors import ConfigError

Make = Callable[..., BenchRecord]
Calls = Callable[..., list[list[float]]]
Rows = Callable[..., tuple]


def by_name(report: RegressionReport) -> dict[str, Metric]:
    return {metric.name: metric for metric in report.metrics}


def test_equal_runs_are_ok(record: Make, calls: Calls, rows: Rows) -> None:
    images = rows({"sketch": 1000, "photo": 1000})
    report = assess(record(calls(2.0, seed=1), images), record(calls(2.0, seed=2), images))
    assert report.verdict == "ok" and report.headline == "No regression against the baseline"
    assert [metric.name for metric in report.metrics] == [
        "accuracy photo",
        "accuracy sketch",
        "accuracy mean",
        "calibration error",
        "latency engine p50",
        "latency call p5",
        "latency call p50",
        "latency end to end p5",
        "latency end to end p50",
        "latency call p95",
        "cold start",
        "peak memory",
    ]
    assert {m.verdict for m in report.metrics} == {"ok", "not judged"}


def test_a_slowdown_is_a_regression_and_a_speedup_an_improvement(record: Make, calls: Calls) -> None:
    slow, fast = record(calls(2.2, seed=1)), record(calls(2.0, seed=2))
    worse, better = assess(slow, fast), assess(fast, slow)
    assert worse.verdict == "regression" and better.verdict == "ok"
    metric = by_name(worse)["latency call p50"]
    assert metric.verdict == "regression" and metric.change == pytest.approx(1.1, rel=0.02)
    assert metric.interval is not None and 1 < metric.interval[0] < metric.change < metric.interval[1]
    assert by_name(better)["latency call p50"].verdict == "improvement"
    assert worse.headline.startswith("latency ") and "got worse: +" in worse.headline
    assert "better" in better.headline


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "verdict", "reason"),
    [
        pytest.param((2.0, 0.002), (2.06, 0.002), {}, "ok", "below the relative floor", id="3 percent"),
        pytest.param((0.02, 0.002), (0.024, 0.002), {}, "ok", "below the absolute floor", id="4 µs"),
        pytest.param((2.0, 0.15), (2.2, 0.15), {}, "inconclusive", "noise of A/A runs", id="noise"),
        pytest.param((2.0, 0.002), (2.06, 0.002), {"relative": 0.02}, "regression", "", id="narrow floor"),
    ],
)
def test_each_criterion_alone_keeps_a_slowdown_from_being_a_regression(
    record: Make,
    calls: Calls,
    before: tuple[float, float],
    after: tuple[float, float],
    tolerance: dict[str, float],
    verdict: str,
    reason: str,
) -> None:
    report = assess(
        record(calls(*after, seed=3)), record(calls(*before, seed=4)), tolerance=Tolerance(**tolerance)
    )
    metric = by_name(report)["latency call p50"]
    assert metric.verdict == verdict and reason in metric.reason


def test_more_runs_of_the_baseline_widen_the_noise(record: Make, calls: Calls) -> None:
    now, before = record(calls(2.2, seed=1)), record(calls(2.0, seed=2))
    again = record(calls(2.3, seed=3))  # the same bundle was once as slow as that
    assert assess(now, before).verdict == "regression"
    report = assess(now, before, more_runs=[again])
    assert report.verdict == "ok"
    assert "noise of A/A runs" in by_name(report)["latency call p50"].reason


@pytest.mark.parametrize(("ms", "verdict"), [(2.2, "ok"), (6.0, "regression")])
def test_a_busy_machine_still_tells_a_large_slowdown(
    record: Make, calls: Calls, ms: float, verdict: str
) -> None:
    now, before = record(calls(ms, seed=1), interrupted=50), record(calls(2.0, seed=2))
    report = assess(now, before)
    metrics = by_name(report)
    assert metrics["latency call p50"].verdict == "inconclusive"
    assert "interrupted" in metrics["latency call p50"].reason
    assert metrics["latency call p5"].verdict == report.verdict == verdict
    quiet = by_name(assess(record(calls(ms, seed=1)), before))
    assert quiet["latency call p5"].verdict == "not judged"


def test_one_process_cannot_tell_its_noise(record: Make, calls: Calls) -> None:
    one = record(calls(2.2, processes=1), cold_ms=(400.0,))
    metric = by_name(assess(one, record(calls(2.0))))["latency call p50"]
    assert metric.verdict == "inconclusive" and "at least 3 processes" in metric.reason


def test_the_interval_is_the_bootstrap_of_medians() -> None:
    """A second, slower bootstrap, one resample at a time."""
    rng = np.random.default_rng(5)
    first, last = np.exp(rng.normal(0, 0.03, 8)), np.exp(rng.normal(0.1, 0.03, 8))
    bounds = compare_runs(first, last, risk=0.05, seed=0)
    draw = np.random.default_rng(6)
    ratios = [
        np.exp(np.median(np.log(draw.choice(last, 8))) - np.median(np.log(draw.choice(first, 8))))
        for _ in range(4000)
    ]
    assert bounds.interval == pytest.approx(tuple(np.quantile(ratios, (0.05, 0.95))), rel=0.01)
    assert bounds.ratio == pytest.approx(np.median(last) / np.median(first), rel=0.01)
    assert bounds.noise is not None and 0.01 < bounds.noise < 0.08


def signed_rank_by_enumeration(pairs: np.ndarray, risk: float) -> tuple[float, float]:
    """Ends of the exact interval: the furthest centres that the test, all sign patterns counted, does not refuse."""
    n = len(pairs)
    patterns = np.array(list(itertools.product((0, 1), repeat=n)))
    sums = patterns @ np.arange(1, n + 1)

    def tail(pairs: np.ndarray, centre: float) -> float:
        """Probability of at least as many high ranks above the centre, were it the centre."""
        about = pairs - centre
        ranks = np.argsort(np.argsort(np.abs(about))) + 1
        return float(np.mean(sums >= ranks[about > 0].sum()))

    def lower(pairs: np.ndarray) -> float:
        means = sorted((a + b) / 2 for i, a in enumerate(pairs) for b in pairs[i:])
        # The tail changes only where the centre passes a mean of two differences; a step past each tells on which side.
        return next(mean for mean in means if tail(pairs, mean + 1e-9) > risk)

    return lower(pairs), -lower(-pairs)


def test_the_interval_of_turns_is_that_of_the_exact_signed_rank_test() -> None:
    rng = np.random.default_rng(7)
    for n, risk in ((8, 0.01), (9, 0.05), (10, 0.0083)):
        first, last = np.exp(rng.normal(0, 0.05, n)), np.exp(rng.normal(0.1, 0.05, n))
        bounds = compare_turns(first, last, risk=risk)
        expected = signed_rank_by_enumeration(np.log(last) - np.log(first), risk)
        assert bounds.interval == pytest.approx(tuple(np.exp(expected)))
        assert bounds.noise == pytest.approx(bounds.ratio / bounds.interval[0] - 1)


def test_turns_take_away_what_both_sides_share() -> None:
    rng = np.random.default_rng(8)
    machine = np.exp(rng.normal(0, 0.3, 16))  # what others did meanwhile
    first, last = machine * np.exp(rng.normal(0, 0.01, 16)), 1.1 * machine * np.exp(rng.normal(0, 0.01, 16))
    bounds = compare_turns(first, last, risk=0.01)
    assert bounds.ratio == pytest.approx(1.1, abs=0.02) and bounds.interval is not None
    assert bounds.interval[0] > 1.08
    apart = compare_runs(first, last, risk=0.01, seed=0)
    assert apart.interval is not None and apart.interval[0] < 1


@pytest.mark.parametrize(
    ("slower", "verdict", "reason"),
    [
        pytest.param(1.2, "inconclusive", "take turns with bench --against", id="within the drift"),
        pytest.param(2.8, "regression", "", id="beyond it"),
        pytest.param(0.8, "ok", "", id="no improvement either"),
    ],
)
def test_runs_apart_on_a_busy_machine_may_have_drifted(
    record: Make, calls: Calls, slower: float, verdict: str, reason: str
) -> None:
    before = record(calls(2.0, seed=1), interrupted=5)
    metric = by_name(assess(record(calls(2.0 * slower, seed=2), interrupted=5), before))["latency call p50"]
    assert metric.verdict == verdict and reason in metric.reason
    again = [record(calls(2.0, seed=seed), interrupted=5) for seed in (3, 4, 5)]
    known = assess(record(calls(2.0 * slower, seed=2), interrupted=5), before, more_runs=again)
    assert by_name(known)["latency call p50"].verdict == {"ok": "improvement"}.get(verdict, "regression")


def test_a_domain_that_drops_is_first_and_a_regression(record: Make, rows: Rows) -> None:
    sizes = {"art": 1000, "photo": 1000, "sketch": 1000}
    before = rows(sizes, {"art": range(50)})
    after = rows(sizes, {"art": range(5, 55), "sketch": range(20)})
    report = assess(record(rows=after), record(rows=before))
    assert report.verdict == "regression"
    first = report.metrics[0]
    assert (first.name, first.verdict, first.change) == ("accuracy sketch", "regression", pytest.approx(-2.0))
    assert first.interval is not None and first.interval[0] < -2.0 < first.interval[1] < 0
    assert "20 images lost, 0 won of 1000" in first.reason
    assert by_name(report)["accuracy photo"].verdict == "ok"
    assert by_name(report)["accuracy art"].verdict in ("ok", "inconclusive")


def test_few_images_are_inconclusive(record: Make, rows: Rows) -> None:
    report = assess(record(rows=rows({"a": 60}, {"a": [1, 2]})), record(rows=rows({"a": 60})))
    metric = report.metrics[0]
    assert metric.verdict == "inconclusive" and "too few images" in metric.reason
    assert report.verdict == "ok" and "undecided" in report.headline


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        pytest.param({"setup": {"threads": 4}}, "threads is 4, the baseline's 1", id="threads"),
        pytest.param({"setup": {"engine": "trt"}}, "engine is trt", id="engine"),
        pytest.param({"machine": {"cpu_model": "B"}}, "the machine or how it is set differs", id="machine"),
        pytest.param({"before": {"power_mode": "15W"}}, "power mode 15W", id="power mode"),
        pytest.param({"bundle": {"target": "jetson-agx-thor"}}, "the target is jetson-agx-thor", id="target"),
    ],
)
def test_other_machines_and_setups_are_not_compared(
    record: Make, changed: dict[str, dict[str, object]], why: str
) -> None:
    base = record()
    other = replace(base, **{name: replace(getattr(base, name), **new) for name, new in changed.items()})
    report = assess(other, base)
    assert report.verdict == "incomparable" and why in report.headline and not report.metrics
    asked = assess(other, base, across=True)
    assert asked.verdict == "ok" and why in asked.notes[0]
    assert "incomparable" in render_junit(report) and "Not comparable" in render_regression_html(report)


def test_a_newer_engine_is_compared_and_said(record: Make) -> None:
    base = record()
    report = assess(replace(base, setup=replace(base.setup, version="1.21")), base)
    assert report.verdict == "ok" and "the engine is ort-cpu 1.21, the baseline's 1.20" in report.notes


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        pytest.param(None, "this run has none", id="no accuracy"),
        pytest.param({"sketch": 90}, "missing from the candidate", id="fewer images"),
        pytest.param({"other": 100}, "missing from the candidate", id="other domain"),
    ],
)
def test_accuracies_of_other_images_are_not_compared(
    record: Make, rows: Rows, now: dict[str, int] | None, reason: str
) -> None:
    base = record(rows=rows({"sketch": 100}))
    report = assess(record(rows=None if now is None else rows(now)), base)
    assert report.verdict == "incomparable" and reason in report.metrics[0].reason


def test_tolerances_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match="confidence between"):
        Tolerance(confidence=1.5)
    with pytest.raises(ConfigError, match="relative to be 0 or more"):
        Tolerance(relative=-0.1)


@pytest.fixture
def worse(record: Make, calls: Calls, rows: Rows) -> RegressionReport:
    name = "<b>sketch</b>|x\x1b"
    before = record(calls(2.0, seed=1), rows({name: 1000, "photo": 1000}))
    return assess(record(calls(2.4, seed=2), rows({name: 1000, "photo": 1000}, {name: range(30)})), before)


def test_every_form_turns(worse: RegressionReport, record: Make) -> None:
    fine = assess(record(), record())
    first = render_regression_html(worse).splitlines()[0]
    assert "Regression" in first and "No regression" not in first
    assert "No regression" in render_regression_html(fine).splitlines()[0]
    suite = ET.fromstring(render_junit(worse)).find("testsuite")
    assert suite is not None and int(suite.attrib["failures"]) == len(worse.regressions) >= 2
    calm = ET.fromstring(render_junit(fine)).find("testsuite")
    assert (
        calm is not None and calm.attrib["failures"] == "0" and int(calm.attrib["tests"]) == len(fine.metrics)
    )
    assert render_regression_markdown(worse).startswith("## ✗ Regression")
    assert render_regression_markdown(fine).startswith("## ✓ No regression")
    assert render_regression_lines(worse).startswith("✗ REGRESSION")
    plain = json.loads(json.dumps(worse.to_json(), allow_nan=False))
    assert plain["verdict"] == "regression"
    assert set(plain["metrics"][0]) >= {"name", "baseline", "now", "interval", "verdict", "reason"}


def test_strangers_names_stay_text(worse: RegressionReport) -> None:
    html, markdown = render_regression_html(worse), render_regression_markdown(worse)
    assert "<b>sketch" not in html and "\x1b" not in html + markdown + render_junit(worse)
    assert "<b>" not in markdown.replace("\\<b\\>", "")
    assert "http" not in html and "<script" not in html


def test_damaged_predictions_are_refused(record: Make, rows: Rows, tmp_path: Path) -> None:
    base = record(rows=rows({"sketch": 50}))
    assert base.accuracy is not None and base.accuracy.predictions is not None
    broken = replace(base.accuracy.predictions, data=base.accuracy.predictions.data[:-8])
    damaged = replace(base, accuracy=replace(base.accuracy, predictions=broken))
    report = assess(damaged, base)
    assert report.verdict == "incomparable" and "packed predictions" in report.metrics[0].reason


def test_accuracies_of_other_domains_than_the_predictions_are_refused(record: Make, rows: Rows) -> None:
    base = record(rows=rows({"photo": 50, "sketch": 50}))
    assert base.accuracy is not None
    fewer = {"photo": base.accuracy.domains["photo"]}
    damaged = replace(base, accuracy=replace(base.accuracy, domains=fewer))
    for now, before in ((damaged, base), (base, damaged)):
        report = assess(now, before)
        assert report.verdict == "incomparable"
        assert "photo, sketch, found photo: measure again" in report.metrics[0].reason
