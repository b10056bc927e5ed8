"""What the library costs over what one would write by hand, and against optimum; everything as ratios in turns.

Example:
    python benchmarks/overhead.py --optimum-python VENV/bin/python --out benchmarks/results/overhead.json

On two networks of about 5 ms of random numbers, at 96 and at 224 pixels, all sides in turn:

- ``arrays``: ``predict`` on a prepared array against the bare ``InferenceSession.run`` of the same graph;
- ``jpeg_by_hand``: ``predict`` on a JPEG file of 640 by 480 against a hand-written loop of Pillow, numpy and ONNX
  Runtime;
- ``jpeg_optimum``: ``predict`` of a list of those files against ``ORTModelForImageClassification`` with its image
  processor, both with their defaults on all processors. Optimum takes its quicker processor and its best batch, found
  beforehand.

On a lighter network at 96 pixels, ``light_optimum``: the same comparison, decoding whole and with ``jpeg_scale``. It is
one of three that were tried; with one of 1.9 ms and one of 0.3 ms, short runs by hand gave 1.88 with ``jpeg_scale`` and
1.93 without.

And on the larger network with JPEG files of 1920 by 1080, decoding them whole and with ``jpeg_scale``, too:

- ``camera_by_hand`` and ``camera_optimum``: the same two comparisons; the others decode whole, as they do unless told.
  A hand-written loop may call Pillow's ``draft``, too, and gains the same: decoding at a fraction is therefore judged
  against this library's own whole decoding.

The bound of twice optimum's images per second is for ``light_optimum`` and ``camera_optimum`` and bundles as builds
make them, with a ``jpeg_scale`` of 2; told to decode whole, as optimum does, this library must not be slower. On the
small files and heavier networks of ``jpeg_optimum`` nobody can reach it: decoding and the network are most of the work
there, and optimum, too, has nothing else to leave out than the rest. What is asked for there is a share of the possible
ratio, optimum's time in one thread over our decoding and network alone, and to be no slower on all processors.
Optimum's time falls out of that share: it is how much of our own time is decoding and the network.

``arrays`` and ``by_hand`` count the CPU time of the process: one thread works on each side, so that on an idle machine
this is the time that passes, and on a busy one the waiting for others is left out. ``optimum`` counts the time that
passes, because work side by side is what it is about; beside it stands what both take with one thread, in CPU time, and
how much of that is decoding and the network.

A record is what one run of one command printed; the tables of runtime/README.md are made of it. Each row says what its
``passed`` compares, when it was measured and on how busy a machine. Optimum runs in a Python of its own (its packages
pin others than this project's). Ends with exit code 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from overheadoptimum import Judge, against_optimum, by_factor, by_place, by_share
from tinymodel import NAMES, tiny_bundle
from vlkd_bench.machine import read_machine
from vlkd_runtime import Classifier
from vlkd_runtime.atomic import write_text

ROWS = ("arrays", "jpeg_by_hand", "jpeg_optimum", "light_optimum", "camera_by_hand", "camera_optimum")
MOST_SHARE, MOST_MS, LEAST_HAND = 0.03, 0.15, 0.95
# Width, height and number of the photographs, and for which network.
SMALL, CAMERA = (640, 480, 40), (1920, 1080, 12)
WHOLE = "whole decoding"
# Ways to decode, each with its ``jpeg_scale``: 1920 by 1080 comes out at 1/2 and at 1/4 for 224 pixels.
WAYS = {WHOLE: 0, "jpeg_scale 2": 2, "jpeg_scale 1": 1}
JUDGES: dict[str, dict[str, Judge]] = {
    "jpeg_optimum": {WHOLE: by_share},
    "light_optimum": {WHOLE: by_place, "jpeg_scale 2": by_factor},
    "camera_optimum": {WHOLE: by_place, "jpeg_scale 2": by_factor, "jpeg_scale 1": by_factor},
}


@dataclass(frozen=True, slots=True)
class Network:
    """A network of random convolutions.

    Attributes:
        side: Height and width of its input.
        convolutions: How many.
        channels: Of each.
        rows: What is asked about it.
    """

    side: int
    convolutions: int
    channels: int
    rows: tuple[str, ...]


# Meant to take 5, 5 and 1 ms on a quick core; a record says what each took where it was made.
NETWORKS = (
    Network(96, 9, 32, ("arrays", "jpeg_by_hand", "jpeg_optimum")),
    Network(224, 4, 16, ("arrays", "jpeg_by_hand", "jpeg_optimum", "camera_by_hand", "camera_optimum")),
    Network(96, 2, 20, ("light_optimum",)),
)


def seconds(call: Callable[[], object]) -> float:
    """Time one call, on the CPU."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turn(sides: Mapping[str, Callable[[int], object]], count: int) -> dict[str, list[float]]:
    """Time all sides in turn, which goes first changing each time; a first tenth warms them and is left out."""
    names = list(sides)
    taken: dict[str, list[float]] = {name: [] for name in names}
    warming = count // 10
    for index in range(count + warming):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(seconds(lambda: sides[name](index)))  # noqa: B023  (called at once)
    return {name: values[warming:] for name, values in taken.items()}


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Medians of what was timed in turn, and of each turn's gap and ratio."""
    ratios = [other / mine for mine, other in zip(ours, theirs, strict=True)]
    gaps = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    return {
        "pairs": len(ratios),
        "ours_ms": round(statistics.median(ours) * 1e3, 4),
        "theirs_ms": round(statistics.median(theirs) * 1e3, 4),
        "gap_ms": round(statistics.median(gaps) * 1e3, 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_95_percent": median_interval(ratios),
    }


def median_interval(values: Sequence[float]) -> list[float]:
    """Bounds of the median at 95 %, from order statistics."""
    ordered, half = sorted(values), len(values) ** 0.5
    places = (int(len(ordered) / 2 + side * half) for side in (-1, 1))
    return [round(ordered[max(0, min(len(ordered) - 1, place))], 4) for place in places]


def session_of(model: bytes) -> Any:
    """A bare session with the options that the engine sets."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def by_hand(session: Any, path: Path, side: int) -> tuple[str, float]:
    """Write the loop one would write without the library."""
    image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    logits = session.run(["logits"], {"image": np.asarray(image)[None]})[0][0]
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    best = int(probabilities.argmax())
    return NAMES[best], float(probabilities[best])


def photographs(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """JPEG files of a camera's kind: smooth shapes and some noise."""
    rng = np.random.default_rng(5)
    paths = []
    for index in range(count):
        rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        pixels = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{width}-{index}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return paths


def beside_hand(found: Mapping[str, Any]) -> dict[str, Any]:
    """Judge what `compared` says of whole decoding and the loop by hand, which decodes whole, too."""
    return {
        "passed": found["ratio"] >= LEAST_HAND,
        "compared": "ratio, the loop by hand over ours, against least_ratio",
        "least_ratio": LEAST_HAND,
    }


def beside_whole(found: Mapping[str, Any]) -> dict[str, Any]:
    """Judge what `compared` says of decoding at a fraction and of decoding whole, both ours, turn by turn."""
    return {
        "passed": found["ratio_95_percent"][0] > 1,
        "compared": "whole_over_this_95_percent, our own whole decoding over this, against 1: all of it above",
        "whole_over_this": found["ratio"],
        "whole_over_this_95_percent": found["ratio_95_percent"],
    }


@dataclass(frozen=True, slots=True)
class Bench:
    """One network and what is asked about it.

    Attributes:
        network: It.
        bundles: It, for this library: by the way it decodes JPEGs.
        session: It, bare.
        asked: The command line.
    """

    network: Network
    bundles: dict[str, Path]
    session: Any
    asked: argparse.Namespace

    @contextmanager
    def loaded(self) -> Iterator[dict[str, Classifier]]:
        """The bundles, one thread each."""
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(Classifier.load(place, engine="ort-cpu", threads=1, cache=None))
                for name, place in self.bundles.items()
            }

    def arrays(self) -> dict[str, Any]:
        """What a call costs beside the network's."""
        side = self.network.side
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
        both = ["embedding", "logits"]
        with self.loaded() as ours:
            taken = in_turn(
                {
                    "ours": lambda _: ours[WHOLE].predict(image),
                    "bare": lambda _: self.session.run(both, {"image": image[None]}),
                },
                self.asked.pairs,
            )
        found = compared(taken["ours"], taken["bare"])
        share = round(found["gap_ms"] / found["theirs_ms"], 5)
        return {
            "passed": share <= MOST_SHARE and found["gap_ms"] <= MOST_MS,
            "compared": "overhead_share against most_share, and gap_ms against most_ms",
            **found,
            "overhead_share": share,
            "most_share": MOST_SHARE,
            "most_ms": MOST_MS,
        }

    def by_hand(self, paths: Sequence[Path], ways: Sequence[str], pairs: int) -> Iterator[dict[str, Any]]:
        """Compare ways to decode, `WHOLE` among them, with one loop by hand: a row for each."""
        with self.loaded() as ours:
            sides: dict[str, Callable[[int], object]] = {
                way: lambda index, way=way: ours[way].predict(paths[index % len(paths)])  # type: ignore[misc]
                for way in ways
            }
            sides["by hand"] = lambda index: by_hand(
                self.session, paths[index % len(paths)], self.network.side
            )
            taken = in_turn(sides, pairs)
        for way in ways:
            found = compared(taken[way], taken["by hand"])
            judged = beside_hand(found) if way == WHOLE else beside_whole(compared(taken[way], taken[WHOLE]))
            yield {"ours": way, **judged, **found}

    def optimum(
        self, name: str, paths: Sequence[Path], judges: Mapping[str, Judge]
    ) -> Iterator[dict[str, Any]]:
        """Compare ways to decode with optimum: a row for each."""
        folder = self.bundles[WHOLE].with_name(name)
        bundles = {way: self.bundles[way] for way in judges}
        found = against_optimum(self.asked.optimum_python, folder, bundles, paths, self.asked.rounds, judges)
        for way, row in found.items():
            yield {"ours": way, **row}

    def rows(self, small: Sequence[Path], camera: Sequence[Path]) -> Iterator[dict[str, Any]]:
        """Measure what is asked for."""
        kinds: dict[str, tuple[str, Callable[[], Iterable[dict[str, Any]]]]] = {
            "arrays": ("none", lambda: [self.arrays()]),
            "jpeg_by_hand": (
                "640 x 480",
                lambda: self.by_hand(small, [WHOLE], self.asked.pairs),
            ),
            "jpeg_optimum": (
                "640 x 480",
                lambda: self.optimum("small", small, JUDGES["jpeg_optimum"]),
            ),
            "light_optimum": (
                "640 x 480",
                lambda: self.optimum("light", small, JUDGES["light_optimum"]),
            ),
            "camera_by_hand": (
                "1920 x 1080",
                lambda: self.by_hand(camera, [*WAYS], self.asked.pairs // 5),
            ),
            "camera_optimum": (
                "1920 x 1080",
                lambda: self.optimum("camera", camera, JUDGES["camera_optimum"]),
            ),
        }
        for name in self.network.rows:
            size, measured = kinds[name]
            if name in self.asked.rows and ("optimum" not in name or self.asked.optimum_python is not None):
                for row in measured():
                    yield {
                        "row": name,
                        "pixels": f"{self.network.side} x {self.network.side}",
                        "photographs": size,
                        **row,
                        "machine": read_machine().describe(),
                        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    }


def measure(folder: Path, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Give the rows of all networks, one after another."""
    small, camera = photographs(folder, *SMALL), photographs(folder, *CAMERA)
    for number, network in enumerate(NETWORKS):
        bundles = {
            way: tiny_bundle(
                folder / f"{number}" / f"bundle{scale}",
                side=network.side,
                convolutions=network.convolutions,
                channels=network.channels,
                jpeg_scale=scale,
            )
            for way, scale in WAYS.items()
        }
        session = session_of((bundles[WHOLE] / "model.onnx").read_bytes())
        yield from Bench(network, bundles, session, asked).rows(small, camera)


def optimum_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Show the comparisons with optimum as runtime/README.md does, in Markdown."""
    lines = [
        "| photographs | network | JPEGs | optimum, ours: ms an image | times the images/s "
        "| in one thread | with decoding and the network alone |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        if "all_processors" in row:
            whole, one = row["all_processors"], row["one_thread"]
            low, high = whole["ratio_95_percent"]
            lines.append(
                f"| {row['photographs']} | {row['pixels']}, {one['ours_in_parts']['network_ms']:.1f} ms | "
                f"{row['ours']} | {whole['theirs_ms']:.2f}, "
                f"{whole['ours_ms']:.2f} | **{whole['images_per_second_ratio']:.2f}** ({low:.2f} to {high:.2f}) | "
                f"{one['images_per_second_ratio']:.2f} | "
                f"{one['ratio_with_decoding_and_network_alone']:.2f} |"
            )
    return "\n".join(lines)


def hand_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Show the comparisons with code by hand as runtime/README.md does, in Markdown."""
    lines = [
        "| photographs | network's input | JPEGs | by hand, ours: CPU ms an image | by hand over ours |",
        "|" + "---|" * 5,
    ]
    for row in rows:
        if "gap_ms" in row:
            low, high = row["ratio_95_percent"]
            lines.append(
                f"| {row['photographs']} | {row['pixels']} | {row.get('ours', 'prepared arrays')} | "
                f"{row['theirs_ms']:.2f}, {row['ours_ms']:.2f} | **{row['ratio']:.3f}** ({low:.3f} to {high:.3f}) |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparisons and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="for a look; not with --out")
    parser.add_argument("--optimum-python", type=Path, help="a Python with optimum-onnx; left out if absent")
    parser.add_argument("--out", type=Path, help="keep the record of a whole run")
    asked = parser.parse_args(arguments)
    if asked.out is not None and (set(asked.rows) != set(ROWS) or asked.optimum_python is None):
        parser.error("--out keeps a whole run: give --optimum-python and leave --rows out")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        rows = list(measure(Path(name), asked))
    record = {
        "passed": all(row["passed"] for row in rows),
        "rows": sorted(rows, key=lambda row: ROWS.index(row["row"])),
        "stand_in": "The networks are a few random convolutions of about 5 and 1 ms; the photographs are drawn.",
        "command": (
            f"python benchmarks/overhead.py --pairs {asked.pairs} --rounds {asked.rounds} --optimum-python PYTHON"
        ),
        "seconds": round(time.perf_counter() - start),
        "onnxruntime": onnxruntime.__version__,
    }
    text = json.dumps(record, indent=1)
    if asked.out is not None:
        write_text(asked.out, text + "\n")
    print(text)
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
