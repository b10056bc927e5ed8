"""Entry point: runs a verb and turns errors into one clear message and an exit code."""

from __future__ import annotations

import json
import sys
import warnings


def main() -> None:
    """Run ``vlkd-edge``.

    Exit codes: 0 done; 1 the guard, the preflight or a verification said no; 2 the caller's mistake; 130
    interrupted.
    """
    from vlkd_runtime.errors import UsageError, VlkdError
    from vlkd_runtime.ortimport import switch_telemetry_off

    from .app import app

    switch_telemetry_off()  # for child processes, too
    if not sys.warnoptions:
        # Of odd EXIF blocks and the like; what makes an image unreadable is an error of its own.
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        app(prog_name="vlkd-edge")
    except VlkdError as error:
        _report(error)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        _report(UsageError(f"{where}{reason}. Free space or grant access, then run the same command again."))
        sys.exit(UsageError.exit_code)


def _report(error: Exception) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text("error: ", style="bold red") + Text(str(error), style=""), soft_wrap=True)
    if "--json" in sys.argv:
        print(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}))


if __name__ == "__main__":
    main()
