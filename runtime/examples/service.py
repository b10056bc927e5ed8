"""A service for systemd: classifies each image that appears in a folder, and says so in the journal.

Example:
    python service.py --bundle model.vlkd --public-key maker.pub --inbox /var/lib/vlkd/inbox

``vlkd.service`` beside this file runs it. systemd gives the cache folder (``CacheDirectory=``), is told when the
model is ready (``Type=notify``) and that the loop is alive (``WatchdogSec=``), and ends it with SIGTERM. An image
is written under a name that ends in ``.part`` and renamed when whole; it is removed after its line was printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vlkd_runtime import Classifier, ImageError, Prediction, VlkdError

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def notify(state: str) -> None:
    """Tell systemd something, where it listens; see sd_notify(3)."""
    place = os.environ.get("NOTIFY_SOCKET")
    if place:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            # Never waited for: a listener that is behind must not stop the work.
            channel.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                channel.sendto(state.encode(), f"\0{place[1:]}" if place.startswith("@") else place)


def waiting(inbox: Path) -> list[Path]:
    """Give the images that wait, oldest first."""
    paths = [path for path in inbox.iterdir() if path.suffix.lower() in ENDINGS and path.is_file()]
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))


def line(path: Path, answer: Prediction | ImageError) -> str:
    """Write an answer as one line of JSON."""
    if isinstance(answer, ImageError):
        return json.dumps({"image": path.name, "error": str(answer)})
    return json.dumps(
        {
            "image": path.name,
            "label": answer.label,
            "known": answer.known,
            "probability": round(answer.probability, 4),
            "similarity": round(answer.similarity, 4),
        }
    )


def serve(
    classifier: Classifier, inbox: Path, threshold: float, every_s: float, stop: threading.Event
) -> None:
    """Classify what appears until told to stop."""
    while not stop.is_set():
        for path in waiting(inbox):
            try:
                answer: Prediction | ImageError = classifier.predict(path, threshold=threshold)
            except ImageError as error:
                answer = error
            print(line(path, answer), flush=True)
            path.unlink(missing_ok=True)
            notify("WATCHDOG=1")
            if stop.is_set():
                return
        notify("WATCHDOG=1")
        stop.wait(every_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the bundle and serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--public-key", type=Path, action="append", default=[])
    parser.add_argument("--inbox", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--every", type=float, default=0.2, help="seconds between looks into the folder")
    asked = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Classifier.load(
            asked.bundle, public_keys=asked.public_key, require_signature=bool(asked.public_key)
        ) as classifier:
            chosen = classifier.selection
            print(f"ready: {classifier.info.provider}, variant {chosen and chosen.variant}", file=sys.stderr)
            notify("READY=1")
            serve(classifier, asked.inbox, asked.threshold, asked.every, stop)
    except VlkdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    notify("STOPPING=1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
