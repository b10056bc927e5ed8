"""Entry point: runs a verb and turns errors into one clear message and an exit code."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Run ``vlkd-edge``.

    Exit codes: 0 done; 1 the guard, the preflight or a verification said no; 2 the caller's mistake; 130
    interrupted.
    """
    from vlkd_runtime.errors import VlkdError

    from .app import app

    try:
        app(prog_name="vlkd-edge")
    except VlkdError as error:
        _report(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(
            "Interrupted. Finished stages and checkpoints are kept; the same command goes on.",
            file=sys.stderr,
        )
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _report(error: Exception) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text("error: ", style="bold red") + Text(str(error), style=""), soft_wrap=True)
    if "--json" in sys.argv:
        print(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}))


if __name__ == "__main__":
    main()
