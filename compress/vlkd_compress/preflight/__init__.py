"""The desk's check that a target will take a graph: a table of rules, then a real parser and builder."""

from __future__ import annotations

from .judge import Breach as Breach
from .judge import check_rules as check_rules
from .rules import RULES as RULES
from .rules import Rule as Rule
from .run import PreflightResult as PreflightResult
from .run import run_preflight as run_preflight

__all__ = ["RULES", "Breach", "PreflightResult", "Rule", "check_rules", "run_preflight"]
