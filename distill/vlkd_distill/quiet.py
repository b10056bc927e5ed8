"""Keeps other libraries' chatter off the user's terminal; errors still come through as exceptions."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence log lines, warnings and prints of the libraries called inside."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
