"""The cases of ``fuzz.py`` that one child process runs; prints a line of JSON for each."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mutations import BUNDLE_MUTATIONS, IMAGE_MUTATIONS, Case, seed_images
from vlkd_runtime import Bundle, Classifier, PreprocessSpec
from vlkd_runtime.bundle import pack
from vlkd_runtime.errors import BundleError, DataError, ImageError, VlkdError
from vlkd_runtime.preprocess import prepare

LONGEST_CASE_S = 5
# A real file system event that changes something, as Python's audit hooks name it.
_CHANGES = frozenset(
    {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
    | {"shutil.rmtree", "shutil.move", "subprocess.Popen", "os.system", "socket.connect"}
)


class Watch:
    """Notes whatever is changed outside one folder while it is on."""

    def __init__(self, allowed: Path) -> None:
        self._allowed = os.fspath(allowed.resolve()) + os.sep
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
                self._note(event, path)
        elif event in _CHANGES:
            self._note(event, arguments[0] if arguments else "")

    def _note(self, event: str, path: object) -> None:
        if isinstance(path, int):
            return  # a descriptor that was opened, and noted, before
        # Not resolved: a link must not make an outside place look like an inside one, or the other way round.
        where = str(Path.cwd() / os.fsdecode(path)) if isinstance(path, (str, bytes)) else repr(path)
        if (not where.startswith(self._allowed) or ".." in where) and where != os.devnull:
            self.seen.append(f"{event} {where}")


def bundle_case(case: Case, folder: Path, whole: bytes) -> tuple[str, str]:
    """Open a damaged bundle; give the outcome, and a finding where there is one."""
    place = folder / "case.vlkd"
    place.write_bytes(case.data)
    WATCH.on = True
    try:
        opened = Bundle.open(place, public_keys=case.public_keys)
        with Classifier.load(opened, engine="ort-cpu", threads=1) as classifier:
            classifier.predict(np.zeros((8, 8, 3), np.uint8))
    except (BundleError, DataError) as error:
        return f"refused: {type(error).__name__}", ""
    except VlkdError as error:
        # Hashes fit and the content is another network's: the self-test and the engine have the last word.
        return f"refused: {type(error).__name__}", "" if case.resealed else f"opened: {error}"
    finally:
        WATCH.on = False
    if case.data == whole:
        return "unchanged", ""
    return "accepted", "" if case.resealed and not case.public_keys else "an altered bundle was accepted"


def image_case(case: Case, folder: Path) -> tuple[str, str]:
    """Decode a damaged image."""
    place = folder / f"case{case.suffix}"
    place.write_bytes(case.data)
    WATCH.on = True
    try:
        pixels = prepare(place, PreprocessSpec(32, 24, "crop", 0.9, "bicubic"))
    except ImageError:
        return "refused", ""
    finally:
        WATCH.on = False
    whole = pixels.shape == (32, 24, 3) and pixels.dtype == np.uint8
    return "decoded", "" if whole else f"{pixels.shape} {pixels.dtype}"


def main() -> None:
    """Run the cases from one number to another."""
    kind, start, end, seed, folder = sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5])
    whole = b""
    if kind == "bundles":
        base = folder / "base"
        archive = folder / "base.vlkd"
        if not archive.exists():
            from tinymodel import tiny_bundle  # it brings onnx, which takes its time

            pack(tiny_bundle(base), archive)
        whole = archive.read_bytes()
    images = seed_images() if kind == "images" else []
    mutations = BUNDLE_MUTATIONS if kind == "bundles" else IMAGE_MUTATIONS
    names = sorted(mutations)
    # Native decoders write to standard output, too; the answers get a channel of their own.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for number in range(start, end):
        rng = np.random.default_rng([seed, number, len(kind)])
        name = names[number % len(names)]
        # An alarm that Python cannot swallow: a hang inside native code ends the process.
        signal.setitimer(signal.ITIMER_REAL, LONGEST_CASE_S * 4)
        case = mutations[name](rng, whole) if kind == "bundles" else mutations[name](rng, images)
        WATCH.seen.clear()
        began, cpu = time.perf_counter(), time.process_time()
        try:
            outcome, finding = (
                bundle_case(case, folder, whole) if kind == "bundles" else image_case(case, folder)
            )
        except Exception as error:
            outcome, finding = "escaped", f"{type(error).__name__}: {error}"[:300]
        # Of this process's own time: other work on the machine is no hang.
        seconds = min(time.perf_counter() - began, time.process_time() - cpu)
        if WATCH.seen:
            finding = finding or f"changed outside the cache: {WATCH.seen[:3]}"
        if seconds > LONGEST_CASE_S:
            finding = finding or "took too long"
        line = {"case": number, "mutation": name, "outcome": outcome, "seconds": seconds, "finding": finding}
        channel.write(json.dumps(line) + "\n")
        channel.flush()
    channel.close()


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    WATCH = Watch(Path(sys.argv[5]) / "cache")
    main()
