"""Verbs that measure: a bundle here, methods over held-out domains, a student against its teacher."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import (
    BundlePath,
    CacheFolder,
    ConfigFile,
    Dataset,
    Domains,
    EngineName,
    Json,
    LeftOut,
    OutFolder,
    Seeds,
    SettingsWords,
    TableName,
    Variables,
    answer,
    choice,
    command_words,
    interruptible,
    stderr,
    stdout,
    trains,
)

if TYPE_CHECKING:
    from vlkd_bench.benchrecord import BenchRecord

DEVICE = "On a device with Python 3.10, numpy, Pillow and an engine, over ssh"


def bench(
    bundle: BundlePath,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder laid out as <domain>/<class>/<image>: measure accuracy on it as well."),
    ] = None,
    domains: Domains = "",
    split: Annotated[
        str, typer.Option(help="'all' images of the folder, or the 'test' ones that no build trains on.")
    ] = "all",
    samples: Annotated[int, typer.Option(min=10, help="Timed calls of each kind; a p99 needs 1000.")] = 1000,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes they are divided among; their differences are the noise. 8, or 16 with --against.",
        ),
    ] = None,
    max_seconds: Annotated[float, typer.Option(min=1, help="Most seconds of timed calls.")] = 120.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
    engine: EngineName = "auto",
    image: Annotated[
        Path | None, typer.Option(help="Image file to time; the first of --data if absent.")
    ] = None,
    throughput: Annotated[bool, typer.Option(help="Measure throughput by batch and by threads.")] = True,
    power: Annotated[bool, typer.Option(help="Measure power, where there is a sensor.")] = True,
    record: Annotated[Path | None, typer.Option(help="Append the record to this JSON-lines file.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Baseline's bundle: its processes take turns with this one's.")
    ] = None,
    against_record: Annotated[
        Path | None,
        typer.Option(help="Append that bundle's record to this file, as a baseline for 'report'."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show latency, power, temperatures and clocks while it runs.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="USER@HOST",
            help="Measure there and bring the record back.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    python: Annotated[
        str, typer.Option(help="The device's Python, 3.10 or later.", rich_help_panel=DEVICE)
    ] = "python3",
    ssh_option: Annotated[
        list[str] | None,
        typer.Option(
            help="Name=value of ssh_config, such as Port=2222 or IdentityFile=KEY.", rich_help_panel=DEVICE
        ),
    ] = None,
    remote_data: Annotated[
        str | None,
        typer.Option(
            help="A --data folder that is on the device already, below the home there if relative.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    reconnect_minutes: Annotated[
        float,
        typer.Option(min=0, help="How long to try again when the connection drops.", rich_help_panel=DEVICE),
    ] = 10.0,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Keep nothing on the device for the next time.", rich_help_panel=DEVICE),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a bundle: latency, cold start, memory, power, device state, accuracy by domain.

    With --on there, over ssh: what is missing is copied to a folder of its own, and the
    run outlives a dropped connection; the same command picks it up again.
    """
    from vlkd_bench.benchrun import PROCESSES, TURNS, Plan

    from ..benching import Request, render
    from ..parsing import words
    from ..progress import Live
    from ..watching import Watching

    if against_record is not None and against is None:
        from vlkd_runtime.errors import ConfigError

        msg = "--against-record keeps the other bundle's record: expected --against OLD with it, found none."
        raise ConfigError(msg)
    count = processes or (PROCESSES if against is None else TURNS)
    plan = Plan(bundle, engine, threads, samples, count, max_seconds, image, throughput, power, against)
    typed = [word.replace(on, on.rpartition("@")[2]) if on else word for word in sys.argv[1:]]
    request = Request(
        plan=plan,
        data=data,
        domains=words(domains),
        split=choice("--split", split, ("all", "test")),
        command=command_words(typed),
        watch=watch,
    )
    kept: list[BenchRecord] = []

    def keep(records: Sequence[BenchRecord]) -> None:
        from vlkd_bench.records import append

        for path, item in zip((record, against_record), records, strict=False):
            if path is not None:
                append(path, item.to_record())
        kept.extend(records)

    show = (Watching if watch else Live)(stderr())
    with interruptible("No record was written."):
        if on is not None:
            from ..over_ssh.connection import Way
            from ..over_ssh.session import Remote, bench_on

            way = Way(on, python, tuple(ssh_option or ()))
            bench_on(request, Remote(way, remote_data, 60 * reconnect_minutes, clean), show, _say, keep)
        else:
            from ..benching import bench as run

            _only_with_on(python != "python3", ssh_option, remote_data, clean)
            keep([found for found in run(request, show) if found is not None])
    if as_json:
        print(json.dumps(kept[0].to_record().to_json(), allow_nan=False))
    else:
        stdout().print(render(kept[0]), markup=False, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    stderr().print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _only_with_on(*given: object) -> None:
    if any(given):
        from vlkd_runtime.errors import ConfigError

        msg = "--python, --ssh-option, --remote-data and --clean are for a device: expected --on USER@HOST with them."
        raise ConfigError(msg)


@trains
def bench_dg(
    dataset: Dataset = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with commas between them.")
    ] = "erm,kd,vl2v-adip,vlkd",
    held_out: LeftOut = "all",
    seeds: Seeds = "0",
    config: ConfigFile = None,
    out: OutFolder = Path("vlkd-out/dg"),
    cache: CacheFolder = None,
    name: TableName = "table",
    add_to: Annotated[
        Path | None,
        typer.Option(
            help="An earlier table (JSON): its cells are not run again, and the new ones are added."
        ),
    ] = None,
    note: Annotated[
        list[str] | None,
        typer.Option(
            help="A paragraph to stand below the table, as on what was tried; in place of earlier ones."
        ),
    ] = None,
    var: Variables = None,
    setting: SettingsWords = None,
    as_json: Json = False,
) -> None:
    """Leave one domain out at a time: train, export and measure every method, beside the teacher.

    Writes NAME.json, NAME.md and NAME.png; an interrupted table goes on where it was. With --add-to it writes
    the earlier table's files anew, so that the results of several runs and machines add up.
    """
    from vlkd_bench.leaveout import LeaveOutTable

    from .. import configfile
    from ..leaveout import KNOWN, command_line, leave_one_out, parse_plan, write

    plan = parse_plan(methods, held_out, seeds, KNOWN)
    settings = [*(setting or []), *([f"data.root={dataset}"] if dataset is not None else [])]
    loaded = configfile.load(config, var or [], settings)
    with interruptible():
        words = command_line(["dg"], plan, config, var or [], setting or [], dataset)
        earlier = LeaveOutTable.read(add_to) if add_to is not None and add_to.exists() else None
        table = leave_one_out(loaded, plan, out, cache or out / "cache", stderr(), words, earlier, note or ())
    if add_to is not None:
        write(table, add_to.parent, add_to.stem)
    else:
        write(table, out, name)
    answer(as_json, table.as_json(), table.markdown())


@trains
def bench_disjoint(
    dataset: Dataset = None,
    methods: Annotated[
        str, typer.Option(help="Methods that predict by class vectors, or parts of vlm-ood: ce-only, ...")
    ] = "ce-only,vlm-ood",
    unseen: Annotated[
        str, typer.Option(help="Unseen classes: a share, a number, names, or 'novel' for the second half.")
    ] = "0.5",
    held_out: LeftOut = "all",
    seeds: Annotated[
        str, typer.Option(help="Seeds of training and of the draw of unseen classes, with commas.")
    ] = "0",
    config: ConfigFile = None,
    out: OutFolder = Path("vlkd-out/disjoint"),
    cache: CacheFolder = None,
    name: TableName = "table",
    var: Variables = None,
    note: Annotated[list[str] | None, typer.Option(help="A sentence to put beneath the table.")] = None,
    setting: SettingsWords = None,
    as_json: Json = False,
) -> None:
    """Train on the images of some classes, measure on the others: in the sources and in a domain left out.

    Writes NAME.json, NAME.md and NAME.png; an interrupted table goes on where it was.
    """
    from .. import configfile
    from ..disjoint import KNOWN, class_disjoint
    from ..leaveout import command_line, parse_plan, write

    plan = parse_plan(methods, held_out, seeds, KNOWN)
    settings = [*(setting or []), *([f"data.root={dataset}"] if dataset is not None else [])]
    loaded = configfile.load(config, var or [], settings)
    with interruptible():
        words = command_line(
            ["disjoint", "--unseen", unseen], plan, config, var or [], setting or [], dataset
        )
        table = class_disjoint(loaded, plan, unseen, out, cache or out / "cache", stderr(), words, note or ())
    write(table, out, name)
    answer(as_json, table.as_json(), table.markdown())


@trains
def bench_data_free(
    dataset: Dataset = None,
    held_out: Annotated[str, typer.Option(help="The domain that nothing learns from.")] = "sketch",
    seeds: Seeds = "0",
    rows: Annotated[
        str | None, typer.Option(help="Rows, with commas between them; all there are if absent.")
    ] = None,
    inversion_images: Annotated[
        int | None, typer.Option(min=2, help="Images a class of the inversion rows, which are dear.")
    ] = None,
    config: ConfigFile = None,
    out: OutFolder = Path("vlkd-out/data-free"),
    cache: CacheFolder = None,
    name: TableName = "data-free",
    note: Annotated[list[str] | None, typer.Option(help="A sentence to put beneath the table.")] = None,
    setting: SettingsWords = None,
    as_json: Json = False,
) -> None:
    """Train on images made from class names, by each prompt rule, beside the same student on real images.

    Writes NAME.json, NAME.md and NAME.png; an interrupted table goes on where it was.
    """
    from .. import configfile
    from ..datafree import ROWS, command_line, parse_plan, run, write

    plan = parse_plan(rows if rows is not None else ",".join(ROWS), held_out, seeds, inversion_images)
    settings = [*(setting or []), *([f"data.root={dataset}"] if dataset is not None else [])]
    loaded = configfile.load(config, [], settings)
    words = command_line(plan, config, setting or [], note or [], dataset)
    with interruptible():
        table = run(loaded, plan, out, cache or out / "cache", stderr(), words, note or ())
    write(table, out, name)
    answer(as_json, table.as_json(), table.markdown())


def align(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="Bundle folder, .vlkd archive, or a build's output folder."),
    ],
    images: Annotated[
        str, typer.Option(help="Folder laid out as <domain>/<class>/<image>, or 'demo'.")
    ] = "demo",
    teacher: Annotated[
        str | None, typer.Option(help="Teacher to compare with; the bundle's own if absent.")
    ] = None,
    domains: Domains = "",
    split: Annotated[
        str, typer.Option(help="'test': images that no build trains on; 'all': every image.")
    ] = "test",
    engine: EngineName = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine.")] = None,
    most_queries: Annotated[
        int, typer.Option(min=1, help="Above it, neighbours are sought for a sample.")
    ] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of that sample.")] = 0,
    demo_images: Annotated[
        int, typer.Option(min=1, help="Images per class and style of the demo world.")
    ] = 20,
    out: OutFolder = Path("vlkd-out/align"),
    cache: CacheFolder = None,
    name: TableName = "align",
    as_json: Json = False,
) -> None:
    """Measure how much of the teacher's space a bundle's student kept: distances, neighbours, rankings."""
    from ..aligning import Request, run
    from ..parsing import words

    request = Request(
        bundle, images, teacher, words(domains), split, engine, threads, most_queries, seed, demo_images
    )
    with interruptible("Teacher embeddings that are finished are kept."):
        made = run(request, out, cache or out / "cache", stderr(), name=name)
    answer(as_json, made.as_json(), made.markdown())
