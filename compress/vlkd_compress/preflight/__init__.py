"""The desk's check that TensorRT will take a graph."""

from __future__ import annotations

from .run import PreflightResult as PreflightResult
from .run import run_preflight as run_preflight

__all__ = ["PreflightResult", "run_preflight"]
