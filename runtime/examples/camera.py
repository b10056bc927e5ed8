"""A camera loop: classifies frames as they come and prints a line whenever the answer changes.

Example:
    python camera.py --bundle model.vlkd --source 0             # a camera, through OpenCV
    python camera.py --bundle model.vlkd --source frames/       # a folder of images, as if they were frames
    python camera.py --bundle model.vlkd --source film.mjpeg    # JPEG images one behind the other

The loop is `Classifier.stream`: the next frame is decoded while one is classified, and a source that is faster than
the network is held back. An answer has to hold for some frames before it is believed, so that one blurred frame
changes nothing.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from vlkd_runtime import Classifier, ImageError, VlkdError
from vlkd_runtime.preprocess import ImageSource

START, END = b"\xff\xd8", b"\xff\xd9"
BLOCK, LARGEST = 1 << 16, 1 << 25


def frames(source: str) -> Iterator[ImageSource]:
    """Give the frames of a camera, a folder or a file."""
    path = Path(source)
    if path.is_dir():
        yield from sorted(path.iterdir())
    elif path.is_file():
        yield from film(path)
    else:
        yield from camera(source)


def film(path: Path) -> Iterator[Image.Image]:
    """Cut a file of JPEG images into its images, with no more than one of them in memory."""
    held = b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            held += block
            while (start := held.find(START)) >= 0 and (end := held.find(END, start + 2)) >= 0:
                yield Image.open(io.BytesIO(held[start : end + 2]))
                held = held[end + 2 :]
            if len(held) > LARGEST:
                held = b""


def camera(source: str) -> Iterator[ImageSource]:
    """Give the frames of a camera; OpenCV has blue first, the network wants red first."""
    import cv2

    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        msg = f"{source}: no such file or folder, and OpenCV opens no camera of that number or address; check it"
        raise ImageError(msg)
    try:
        while True:
            whole, frame = capture.read()
            if not whole:
                return
            yield frame[:, :, ::-1]
    finally:
        capture.release()


def watch(classifier: Classifier, source: str, threshold: float, hold: int) -> int:
    """Print each answer that holds for some frames; give the number of frames seen."""
    shown = candidate = ""
    held = count = 0
    begun = time.monotonic()
    for answer in classifier.stream(frames(source), threshold=threshold, ahead=4, on_error="yield"):
        count += 1
        if isinstance(answer, ImageError):
            print(f"frame {count}: {answer}", file=sys.stderr)
            continue
        held = held + 1 if answer.label == candidate else 1
        candidate = answer.label
        if held >= hold and candidate != shown:
            shown = candidate
            print(f"frame {count}: {answer.label} {answer.probability:.1%}", flush=True)
    seconds = max(time.monotonic() - begun, 1e-9)
    print(f"{count} frames, {count / seconds:.1f} a second, {classifier.info.provider}", file=sys.stderr)
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the bundle and watch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--source", required=True, help="number of a camera, a folder, or a file")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--hold", type=int, default=3, help="frames that an answer has to hold")
    asked = parser.parse_args(arguments)
    try:
        with Classifier.load(asked.bundle) as classifier:
            watch(classifier, asked.source, asked.threshold, asked.hold)
    except VlkdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
