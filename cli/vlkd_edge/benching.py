"""The ``bench`` verb: latency, device state, power and accuracy of a bundle on the machine at hand, as one record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, Protocol

from vlkd_bench.accuracydetail import AccuracyRecord, ClassAccuracy, Confusion, describe_accuracy
from vlkd_bench.benchrecord import BenchRecord, BundleFacts, Setup
from vlkd_bench.benchrun import Measured, Plan, run
from vlkd_bench.devicestate import read_state
from vlkd_bench.machine import read_machine
from vlkd_bench.observing import Glimpse
from vlkd_bench.predictions import PredictionRow, evaluate
from vlkd_bench.samples import Sample
from vlkd_runtime import Classifier
from vlkd_runtime.bundle import Bundle
from vlkd_runtime.errors import ConfigError

from .readable import Readable, only_readable

# Parts of providers' names that say that a GPU runs the model.
GPU_PROVIDERS = ("CUDA", "TensorRT", "Tensorrt", "NvTensorRtRtx")

# Worst classes and most frequent confusions that people are shown.
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What the verb was asked for.

    Attributes:
        plan: What to measure of speed.
        data: Folder of domains to measure accuracy on; None leaves accuracy out.
        domains: Domains to take; all if empty.
        split: "all" images, or the "test" images that no build trains on.
        command: What was typed, without paths.
        watch: Whether to show how the bench and the device are doing while it runs.
        root: Where /proc and /sys are found.
    """

    plan: Plan
    data: Path | None = None
    domains: tuple[str, ...] = ()
    split: Literal["all", "test"] = "all"
    command: str = ""
    watch: bool = False
    root: Path = field(default=Path("/"))


class Show(Protocol):
    """Where a bench shows how far it is. Needs no package that a device may lack."""

    def task(self, title: str, total: int | None) -> AbstractContextManager[Callable[..., None]]:
        """Show one piece of work; the value is called as ``advance(count, note="...")``."""
        ...

    def glimpse(self, glimpse: Glimpse) -> None:
        """Show one look at the bench; called in another thread."""
        ...


def bench(request: Request, live: Show) -> tuple[BenchRecord, BenchRecord | None]:
    """Measure a bundle, and the one it takes turns with if there is one.

    Args:
        request: What to measure.
        live: Where to show how far it is.

    Raises:
        BundleError: The bundle is damaged.
        DataError: The folder, a domain or a class is missing or empty, or too many images cannot be decoded.
        UnavailableError: The engine is not installed, or a process failed.
    """
    plan = request.plan
    opened = Bundle.open(plan.bundle)
    every = find_samples(request, opened.manifest.classes) if request.data is not None else ()
    left = only_readable(every, live) if every else Readable((), {})
    samples = left.samples
    other = Bundle.open(plan.against) if plan.against is not None else None
    # Opened here once before anything is timed: an engine that must be built is built now, and what is wrong
    # is said by the error it is.
    ran = _open_once(opened, plan)
    other_ran = ran if other is None else _open_once(other, plan)
    on_gpu = any(part in ran.setup.provider for part in GPU_PROVIDERS)
    before = read_state(request.root, on_gpu=on_gpu)
    with live.task("timing", None) as advance:

        def progress(note: str) -> None:
            advance(1, note=note)

        measured = run(
            replace(plan, image=plan.image or (samples[0].path if samples else None)),
            on_gpu=on_gpu,
            root=request.root,
            progress=progress,
            watch=live.glimpse if request.watch else None,
        )
    after = read_state(request.root, on_gpu=on_gpu)
    machine, when = read_machine(request.root), datetime.now(timezone.utc).isoformat(timespec="seconds")

    def put_together(opened: Bundle, ran: Ran, measured: Measured, partner: str) -> BenchRecord:
        record = BenchRecord(
            when=when,
            bundle=BundleFacts(
                name=opened.manifest.name,
                digest=opened.manifest.digest,
                target=opened.manifest.target,
                precision=ran.precision,
                size_bytes=sum(len(data) for data in opened.files.values()),
                stand_in=opened.manifest.stand_in,
            ),
            setup=ran.setup,
            machine=machine,
            before=before,
            after=after,
            latency=measured.latency,
            cold_start=measured.cold_start,
            throughput=measured.throughput,
            memory=measured.memory,
            power=measured.power,
            accuracy=_accuracy(request, opened, samples, live) if samples else None,
            notes=measured.notes,
            command=request.command,
            interleaved_with=partner,
        )
        told = *record.notes, *filter(None, [left.sentence]), *record.disturbances, *_elsewhere(record)
        return replace(record, notes=told)

    record = put_together(opened, ran, measured, other.manifest.digest if other else "")
    if other is None or measured.against is None:
        return record, None
    return record, put_together(other, other_ran, measured.against, opened.manifest.digest)


@dataclass(frozen=True, slots=True)
class Ran:
    """What of a bundle runs here.

    Attributes:
        setup: The engine.
        precision: Of the variant that it took.
    """

    setup: Setup
    precision: str


def _open_once(opened: Bundle, plan: Plan) -> Ran:
    with Classifier.load(opened, engine=plan.engine, threads=plan.threads) as classifier:
        info, chosen = classifier.info, classifier.selection
    precision = next(
        variant.model.precision
        for variant in opened.manifest.variants
        if chosen is None or variant.name == chosen.variant
    )
    return Ran(Setup(info.name, info.provider, info.version, plan.threads, info.batch), precision)


def find_samples(request: Request, classes: Sequence[str]) -> tuple[Sample, ...]:
    """Find the images to measure accuracy on, labelled in the bundle's order of classes.

    Raises:
        DataError: The folder, a domain or a class is missing or empty.
        ConfigError: The split leaves a domain without images.
    """
    from vlkd_distill.data import scan, split_of

    assert request.data is not None
    dataset = scan(request.data, domains=request.domains, classes=classes)
    chosen = tuple(
        sample for sample in dataset.samples if request.split == "all" or split_of(sample.image) == "test"
    )
    empty = [name for name in dataset.domains if all(sample.domain != name for sample in chosen)]
    if empty:
        msg = (
            f"Expected test images in every domain of {request.data}, found none in {', '.join(empty)}: one image in "
            "five, by the hash of its name, is for testing. Add images, or take --split all."
        )
        raise ConfigError(msg)
    return chosen


def _accuracy(request: Request, opened: Bundle, samples: tuple[Sample, ...], live: Show) -> AccuracyRecord:
    with (
        Classifier.load(opened, engine=request.plan.engine, threads=request.plan.threads) as classifier,
        live.task("classifying", len(samples)) as advance,
    ):
        rows: Sequence[PredictionRow] = evaluate(classifier, samples, _once(advance))
    assert request.data is not None
    return describe_accuracy(
        rows,
        opened.manifest.classes,
        dataset=f"{request.data.resolve().name}, {len(samples)} images",
        split=request.split,
    )


def _once(advance: Callable[..., None]) -> Callable[[int], None]:
    return lambda _done: advance(1)


def _elsewhere(record: BenchRecord) -> tuple[str, ...]:
    if record.bundle.target.startswith("jetson") and "Jetson" not in record.machine.board:
        return (f"this is not the {record.bundle.target}; measure there for its numbers",)
    return ()


def render(record: BenchRecord) -> str:
    """A record as lines for people."""
    lines = [
        f"{record.bundle.name} for {record.bundle.target}, {record.bundle.precision}, {record.setup.describe()}",
        f"on {record.machine.describe()}" + f"; reached as {record.host} {record.how}" * bool(record.host),
        f"state: {record.before.describe()}",
        "",
        f"{'ms':<14}{'p50':>16}{'p90':>16}{'p95':>16}{'p99':>16}{'max':>10}",
    ]
    for name, timing in record.latency.items():
        stats = timing.stats
        values = (stats.p50_ms, stats.p90_ms, stats.p95_ms, stats.p99_ms)
        cells = "".join(f"{'–' if value is None else f'{value:.3f}':>16}" for value in values)
        lines.append(f"{name.replace('_', ' '):<14}{cells}{stats.max_ms:>10.3f}  n {stats.n}")
        around = (
            stats.p50_interval_ms,
            stats.p90_interval_ms,
            stats.p95_interval_ms,
            stats.p99_interval_ms,
        )
        cells = "".join(f"{'' if ends is None else f'{ends[0]:.3f}–{ends[1]:.3f}':>16}" for ends in around)
        lines.append(f"{'  95 % in':<14}{cells}")
    if record.latency["call"].stats.p99_ms is None:
        lines.append("p90 needs 100 calls, p95 200 and p99 1000; --samples sets their number")
    cold, memory = record.cold_start, record.memory
    lines += [
        "",
        f"cold start: {_middle(cold.total_ms):.0f} ms from process start to the first answer "
        f"(median of {len(cold.total_ms)}; loading {_middle(cold.load_ms):.0f})",
        f"memory: {max(memory.peak_resident_bytes) / 1e6:.0f} MB resident at most; on the GPU: "
        + (
            memory.device_reason
            if memory.device_bytes is None
            else f"{memory.device_bytes / 1e6:.0f} MB at most"
        ),
    ]
    if record.throughput:
        rates = [
            f"{row.images_per_s:.0f} ({row.images} a call, {row.threads} thread{'s' * (row.threads > 1)})"
            for row in record.throughput
        ]
        lines.append("throughput, images/s: " + ", ".join(rates))
    lines.append(_power(record))
    if record.accuracy is not None:
        lines += ["", *_accuracy_lines(record.accuracy)]
    lines += [f"note: {note}" for note in record.notes]
    for name, timing in record.latency.items():
        lines += [f"note: {name.replace('_', ' ')}: {note}" for note in timing.stats.notes]
    if record.bundle.stand_in:
        lines.append(f"stand-in: {record.bundle.stand_in}")
    return "\n".join(lines)


def _power(record: BenchRecord) -> str:
    power = record.power
    if power.load_w is None or power.joule_per_image is None or power.net_joule_per_image is None:
        return f"power: {power.reason}"
    return (
        f"power: {power.load_w:.2f} W under load, {power.idle_w:.2f} W idle; {1e3 * power.joule_per_image:.2f} mJ an "
        f"image, {1e3 * power.net_joule_per_image:.2f} above idle ({power.sensor}: {power.covers})"
    )


def _accuracy_lines(accuracy: AccuracyRecord) -> list[str]:
    lines = [f"accuracy on {accuracy.dataset} ({accuracy.split})"]
    for name, item in sorted(accuracy.domains.items(), key=lambda pair: pair[1].accuracy):
        lines.append(
            f"  {name:<20}{100 * item.accuracy:6.1f} %  {100 * item.lower:.1f} to {100 * item.upper:.1f}, n {item.n}"
        )
    low, high = accuracy.mean_interval
    lines.append(
        f"  {'mean of domains':<20}{100 * accuracy.mean:6.1f} %  {100 * low:.1f} to {100 * high:.1f}"
    )
    low, high = accuracy.ece_interval
    lines.append(f"  {'calibration error':<20}{accuracy.ece:6.3f}    {low:.3f} to {high:.3f}")
    worst = sorted(accuracy.per_class, key=lambda item: item.accuracy)[:SHOWN]
    lines += [f"  class {item.name}: {_share(item.accuracy, item)}, n {item.n}" for item in worst]
    lines += [
        f"  {pair.label} taken for {pair.prediction}: {_share(pair.share, pair)}, {pair.count} images"
        for pair in accuracy.confusions[:SHOWN]
    ]
    hidden = len(accuracy.per_class) - len(worst), max(0, len(accuracy.confusions) - SHOWN)
    return [*lines, f"  the record has {hidden[0]} more classes and {hidden[1]} more confusions"]


def _share(share: float, item: ClassAccuracy | Confusion) -> str:
    return f"{100 * share:.1f} %, {100 * item.lower:.1f} to {100 * item.upper:.1f}"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
