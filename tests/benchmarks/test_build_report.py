from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import json
import re
from dataclasses import replace
from functools import cache
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from vlkd_bench.accuracy import summarise
from vlkd_bench.latency import summarise_latency
from vlkd_bench.machine import Machine
from vlkd_bench.paired import GuardBudget, judge
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.report import (
    BuildReport,
    CandidateRow,
    FloatRow,
    LatencyRow,
    ModelAccuracy,
    PreflightRow,
    RefusedRow,
    StageRow,
    render_html,
    render_json,
    render_markdown,
    render_terminal,
    wording,
)
from vlkd_bench.report.flips import DomainFlips, Flip
from vlkd_bench.report.history import Point
from vlkd_bench.report.similarity import class_similarity
from vlkd_bench.samples import ABSENT

PIXELS = base64.b64encode(b"\xff\xd8 as good as any to a renderer").decode()
HOSTILE = '<script>alert("x")</script> & $\\frac{a}{b}$ | `rm` [red]\x1b[31m\u202e'
STAND_IN = "The demo world stands in for real images."


def rows(right: dict[str, int], n: int = 400) -> tuple[PredictionRow, ...]:
    return tuple(
        PredictionRow(f"{domain}/c/{i}", domain, 0, 0 if i < count else 1, 0.8, 0.3)
        for domain, count in right.items()
        for i in range(n)
    )


def report(held_out: str = "sketch", text: str = "plain text", confidence: float = 0.95) -> BuildReport:
    reference = rows({held_out: 360, "photo": 390})
    candidate = rows({held_out: 359, "photo": 388})
    budget = GuardBudget(worst_points=1.5, confidence=confidence)
    before, after = (tuple(r for r in both if r.domain == held_out) for both in (reference, candidate))
    stats = summarise_latency([1_000_000 + 300 * (i % 37) for i in range(1200)])
    machine = Machine("A CPU", 4, 2, ("avx2",), 2**34, "Linux 6", "x86_64", "3.11", 0.5, "", "")
    return BuildReport(
        title=text,
        target="jetson-orin-nano",
        dataset=text,
        teacher=text,
        student="net",
        method="vl2v-adip",
        held_out=(held_out,),
        stand_ins=(STAND_IN,),
        accuracy=(
            ModelAccuracy("teacher", text, "torch", summarise(reference)),
            ModelAccuracy("erm", "plain", "float ONNX through vlkd_runtime", summarise(reference)),
            ModelAccuracy("student", "net", "float ONNX through vlkd_runtime", summarise(reference)),
            ModelAccuracy("shipped", "net INT8", "INT8 ONNX through vlkd_runtime", summarise(candidate)),
        ),
        guard=judge(before, after, budget),
        budget=budget,
        candidates=(
            CandidateRow(text, ("INT8", text), "fail", 3.0, 4.0, None, 1_000_000, 0.9, (3.3, 3.2, 3.4)),
            CandidateRow("int8-kl", ("INT8",), "pass", 0.25, 1.2, 1.0, 1_200_000, 1.0, (3.0, 2.9, 3.1)),
        ),
        preflight=PreflightRow("pass", "TensorRT-RTX", text),
        latency=(LatencyRow("shipped", stats, "this CPU, 1 thread"), LatencyRow(text, stats, text)),
        machine=machine,
        stages=(StageRow("distill", 61.0, False), StageRow(text, 0.4, True)),
        size_bytes=1_912_345,
        bundle="out/x.vlkd",
        report="out/report.html",
        contract=(text,),
        provenance={"seed": "0", text: text},
        command="vlkd-edge build",
        floating=FloatRow(4_700_000, 3.0),
        refused=(RefusedRow("fp8", (text,), text),),
        flips=(
            DomainFlips(
                held_out,
                400,
                1,
                0,
                1,
                (
                    Flip(text, "lost", text, text, text, 0.6, None, PIXELS),
                    Flip(f"{held_out}/gone.png", "other", text, text, text, None, 0.5, ""),
                ),
            ),
            DomainFlips("photo", 400, 0, 0, 0, ()),
        ),
        classes=class_similarity((text, "b", "c"), np.eye(3, 4, dtype=np.float32), reference),
        history=(
            Point("2024-05-06T07:00:00+00:00", "accepted", "a" * 64, 1.0, 0.9, 1_000, ("cold start",), text),
            Point("2024-05-07T07:00:00+00:00", "now", text, 1.1, 0.8, None, (), ""),
        ),
    )


def terminal(value: BuildReport) -> str:
    out = StringIO()
    Console(file=out, width=120, force_terminal=False).print(render_terminal(value))
    return out.getvalue()


@cache
def page(hostile: bool = False) -> str:
    return render_html(report(HOSTILE, HOSTILE) if hostile else report())


RENDERERS = {"html": render_html, "markdown": render_markdown, "terminal": terminal}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_every_report_says_the_same(renderer: str) -> None:
    text = RENDERERS[renderer](report())
    flat = " ".join(re.sub(r"[│╭╮╰╯─]", " ", html.unescape(text)).split()).replace("\\", "")
    assert STAND_IN in flat
    for number in ("90.0 %", "89.8 %", "0.25", "1.91 MB", "1.20 MB", "1 min 01 s"):
        assert number in flat, number
    first = flat.lower().index("pass")
    assert first < flat.index("90.0 %")
    assert "held out" in flat
    assert "the mean's budget (0.50 points) is not judged separately" in flat


def test_json_keeps_its_contract() -> None:
    value = report()
    data = json.loads(render_json(value))
    assert data["bundle"] == "out/x.vlkd"
    assert data["report"] == "out/report.html"
    assert data["size_bytes"] == 1_912_345
    assert data["stages"][0] == {"name": "distill", "seconds": 61.0, "cached": False}
    assert data["accuracy"]["held_out"] == ["sketch"]
    assert data["accuracy"]["teacher"] == {"photo": 0.975, "sketch": 0.9}
    assert data["accuracy"]["shipped"]["sketch"] == pytest.approx(359 / 400)
    assert set(data["accuracy"]) == {"teacher", "erm", "student", "shipped", "held_out"}
    assert data["guard"]["verdict"] == "pass"
    assert data["guard"]["domains"]["sketch"]["drop"] == pytest.approx(0.25)
    assert data["preflight"] == {"verdict": "pass", "engine": "TensorRT-RTX", "detail": "plain text"}
    assert data["latency_ms"] == {"p50": value.latency[0].stats.p50_ms, "p99": value.latency[0].stats.p99_ms}
    assert data["intervals"]["shipped"]["sketch"]["n"] == 400
    assert data["guard"]["budget"]["worst_points"] == 1.5


class Walker(html.parser.HTMLParser):
    """Collects tags, text, ids and everything that would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "srcset", "data", "action"):
                self.references.append(value or "")
            assert not name.startswith("on"), (tag, name)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def walk(text: str) -> Walker:
    walker = Walker()
    walker.feed(text)
    walker.close()
    return walker


@pytest.mark.parametrize("hostile", [False, True], ids=["usual", "hostile"])
def test_html_is_one_file_without_scripts(hostile: bool) -> None:
    text = page(hostile)
    walker = walk(text)
    assert walker.tags.isdisjoint({"script", "link", "iframe", "object", "embed"})
    images = [reference for reference in walker.references if not reference.startswith("#")]
    assert images == [f"data:image/jpeg;base64,{PIXELS}"]
    assert len(walker.ids) == len(set(walker.ids))
    targets = {reference[1:] for reference in walker.references if reference.startswith("#")} | set(
        re.findall(r"url\(#([^)]+)\)", text)
    )
    assert targets <= set(walker.ids)
    assert "@import" not in text
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    # Seven plots (accuracy, two of candidates, classes, latency, two of history), for a wide page and for a phone.
    assert text.count("<svg") == 14
    assert "pass: Accuracy on sketch" in text.splitlines()[0] or hostile
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_hostile_names_are_only_text() -> None:
    text = page(True)
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    shown = "".join(walk(text).text)
    assert 'alert("x")' in shown
    assert "\\frac" in shown


def test_hostile_names_do_not_steer_a_terminal_or_markdown() -> None:
    value = report(HOSTILE, HOSTILE)
    shown = terminal(value)
    assert "\x1b" not in shown
    assert "[red]" in shown
    marked = render_markdown(value)
    assert "\x1b" not in marked
    assert "<script" not in marked.replace("\\<script", "")
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in marked.split("\n") if line.startswith("| ")}
    assert bars == {3 + 1, 5 + 1, 8 + 1, 9 + 1, 10 + 1}


def test_html_is_the_same_for_the_same_report() -> None:
    digest = hashlib.sha256(render_html(report()).encode()).hexdigest()
    assert hashlib.sha256(page().encode()).hexdigest() == digest
    assert not re.search(r"#0[0-9a-c]0[0-9a-c]0[0-9a-c]\b", page())


def sections(text: str) -> dict[str, str]:
    """The page's sections by their ids."""
    return dict(re.findall(r'<section id="(\w+)".*?>(.*?)</section>', text, re.DOTALL))


# Heads that are no numbers, or whose meaning is in the head.
PLAIN_HEADS = {
    "domain",
    "candidate",
    "model",
    "stage",
    "when",
    "bundle",
    "closest pairs",
    "metric",
    "time of",
    "",
}


def undefined_heads(text: str) -> set[str]:
    """Column heads that no definition beneath their table names."""
    missing = set()
    for body in sections(text).values():
        heads = [html.unescape(head) for head in re.findall(r'<th scope="col">(.*?)</th>', body)]
        defined = " ".join(re.findall(r"<dt>(.*?)</dt>", body))
        shares = {
            "lower bound": "lower",
            "p90": "p50 to p99",
            "p95": "p50 to p99",
            "p99": "p50 to p99",
            "p50": "p50",
        }
        missing |= {
            head for head in heads if head not in PLAIN_HEADS and shares.get(head, head) not in defined
        }
    return missing


def test_every_column_has_a_definition_beside_it() -> None:
    assert undefined_heads(page()) == set()
    assert len(sections(page())) == 11


def test_rejection_of_unknowns_is_a_row_where_it_was_judged() -> None:
    known = rows({"sketch": 380})
    unknown = tuple(
        PredictionRow(f"sketch/other/{i}", "sketch", ABSENT, i % 2, 0.5, 0.1 + i / 1e4) for i in range(60)
    )
    judged = judge((*known, *unknown), (*known, *unknown), GuardBudget(rejection_points=1.0))
    value = replace(report(), guard=judged)
    for text in (render_html(value), render_markdown(value)):
        (line,) = [
            row
            for row in re.split(r"</tr>|\n(?=\|)", text)
            if "rejection of unknowns" in row and "1.00" in row
        ]
        assert "60" in line
    assert "rejection of unknowns" not in "".join(re.findall(r"<th scope=.row.>[^<]*", page()))


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(
    ("changes", "outcome", "words"),
    [
        pytest.param({}, "pass", "Accuracy on sketch stays within budget", id="pass"),
        pytest.param(
            {"preflight": PreflightRow("fail", "TensorRT", "no kernel")},
            "fail",
            "TensorRT refuses",
            id="preflight",
        ),
        pytest.param({"guard": None, "candidates": ()}, "not judged", "No guard ran", id="no guard"),
        pytest.param(
            {"accuracy": (), "latency": (), "stages": (), "contract": (), "held_out": (), "stand_ins": ()},
            "pass",
            "held-out data",
            id="little known",
        ),
    ],
)
def test_partial_reports(renderer: str, changes: dict[str, object], outcome: str, words: str) -> None:
    value = replace(report(), **changes)  # type: ignore[arg-type]
    assert value.outcome == outcome
    text = RENDERERS[renderer](value)
    assert words in text
    data = json.loads(render_json(value))
    assert data["outcome"] == outcome
    assert data["guard"]["verdict"] == ("not run" if value.guard is None else "pass")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.seconds(3.04), "3.0 s"),
        (wording.seconds(61), "1 min 01 s"),
        (wording.seconds(7261), "2 h 01 min"),
        (wording.size(999), "999 B"),
        (wording.size(1_500_000), "1.50 MB"),
        (wording.size(999_999), "1.00 MB"),
        (wording.points(-0.001), "0.00"),
        (wording.points(-1.5), "−1.50"),
        (wording.milliseconds(None), "–"),
        (wording.milliseconds(1.2345), "1.23 ms"),
        (wording.milliseconds(123.4), "123 ms"),
        (wording.p_value(0.0004), "<0.001"),
        (wording.plain("a\x1b[2J\u202e"), "a\ufffd[2J\ufffd"),
        (wording.plain("می\u200cخواهم"), "می\u200cخواهم"),
    ],
)
def test_wording(shown: str, expected: str) -> None:
    assert shown == expected
