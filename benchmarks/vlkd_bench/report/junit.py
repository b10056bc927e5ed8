"""A regression report as JUnit XML: one test case a metric, for whatever shows a CI's tests."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from ..metrics import Metric
from ..regression import RegressionReport
from . import wording

SUITE = "vlkd-edge"


def render_junit(report: RegressionReport) -> str:
    """Return the XML; a regression is a failure, what cannot be compared an error, what was not judged skipped."""
    cases = report.metrics or (
        Metric("comparison", "", None, None, None, None, "incomparable", report.headline),
    )
    counts = {tag: sum(_tag(metric) == tag for metric in cases) for tag in ("failure", "error", "skipped")}
    suite = ET.Element(
        "testsuite",
        name=SUITE,
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        timestamp=report.now.when.partition("+")[0],
    )
    for metric in cases:
        case = ET.SubElement(
            suite, "testcase", classname=f"{SUITE}.regression", name=wording.plain(metric.name)
        )
        tag = _tag(metric)
        if tag:
            text = wording.plain(metric.reason)
            ET.SubElement(case, tag, message=text, type=metric.verdict).text = text
        else:
            ET.SubElement(case, "system-out").text = wording.plain(f"{metric.verdict}: {metric.reason}")
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _tag(metric: Metric) -> str:
    tags = {
        "regression": "failure",
        "incomparable": "error",
        "inconclusive": "skipped",
        "not judged": "skipped",
    }
    return tags.get(metric.verdict, "")
