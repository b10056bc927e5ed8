"""Imports ONNX Runtime with its telemetry off.

Its Linux wheels send usage data since 1.29: an import leaves a database in the user's home and asks for a server's
address. On a device nobody wants that. Seen in 1.32: ``disable_telemetry_events()`` comes too late for it, so the
variable has to stand before the first import.
"""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "ORT_DISABLE_TELEMETRY"


def switch_telemetry_off() -> None:
    """Set the variable for this process and its children, unless somebody has set it."""
    os.environ.setdefault(VARIABLE, "1")


def import_onnxruntime() -> Any:
    """Give the module.

    Raises:
        ImportError: It is not installed, or its libraries do not load.
    """
    switch_telemetry_off()
    import onnxruntime

    return onnxruntime
