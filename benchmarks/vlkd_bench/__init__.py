"""Measures what ships: accuracy by domain, the guard's paired statistics, latency, and reports."""

from .accuracy import AccuracySummary, DomainAccuracy, summarise
from .latency import LatencyStats, measure
from .machine import Machine, read_machine
from .paired import GuardBudget, GuardVerdict, PairedComparison, compare, judge
from .predictions import PredictionRow, evaluate, read_predictions, write_predictions
from .records import append_record, read_records
from .samples import Sample

__all__ = [
    "AccuracySummary",
    "DomainAccuracy",
    "GuardBudget",
    "GuardVerdict",
    "LatencyStats",
    "Machine",
    "PairedComparison",
    "PredictionRow",
    "Sample",
    "append_record",
    "compare",
    "evaluate",
    "judge",
    "measure",
    "read_machine",
    "read_predictions",
    "read_records",
    "summarise",
    "write_predictions",
]
