"""`vlkd-edge vectors`: embed class names once, look them over, and show which classes lie close together.

Letters: C classes.

References:
    Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability", ICCV 2023
    (mean cosine between the label texts as a measure of their quality; lower is better).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlkd_runtime import vectorlint
from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import ConfigError, UnavailableError
from vlkd_runtime.vectorlint import Finding
from vlkd_runtime.vectors import ClassVectors, check_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlkd_distill.querybudget import QueryReport
    from vlkd_distill.teachers import Teacher

DEMO = "demo"
FILE = "class_vectors.safetensors"
_NEEDED = ("torch", "open_clip", "matplotlib")
_VALUES_UP_TO = 20
_LABELS_UP_TO = 150


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What the caller asked for.

    Attributes:
        names: class names with commas between them.
        names_from: text file with one class name a line.
        dataset: folder laid out as ``<domain>/<class>/<image>``, or ``demo``; its classes are meant.
        teacher: who embeds the prompts.
        templates: a built-in template set, or a file of templates.
        attributes: file from class names to attributes, or ``demo``.
        out: where the vectors are written; the picture lies beside them.
        lint: file or bundle folder to look over instead; the names are then what it must hold.
        dim: the embedding size that is expected.
        near: from this cosine on, two classes are called hard to tell apart.
    """

    names: str | None = None
    names_from: Path | None = None
    dataset: str | None = None
    teacher: str = DEMO
    templates: str = "photo"
    attributes: str | None = None
    out: Path = Path(FILE)
    lint: Path | None = None
    dim: int | None = None
    near: float = vectorlint.NEAR


def run(
    request: Request, as_json: bool, console: Console, load: Callable[[str], Teacher] | None = None
) -> int:
    """Make class vectors or look at some, and print what was found.

    Args:
        request: what to do.
        as_json: print one JSON object instead of a table.
        console: standard output.
        load: from a teacher's name to the teacher; open_clip models if absent.

    Returns:
        Exit code: 1 where an error was found, otherwise 0.

    Raises:
        UsageError: the caller's mistake, found before the teacher is loaded where it can be.
    """
    expected, queries = class_names(request), None
    if request.lint is not None:
        if request.attributes is not None:
            msg = "--attributes says how to make vectors and --lint looks at finished ones: give one of them."
            raise ConfigError(msg)
        path = request.lint / FILE if request.lint.is_dir() else request.lint
        rows, found = vectorlint.lint_file(path, expected, request.dim, request.near)
    else:
        path = request.out
        made, queries = make(request, expected or (), load)
        rows, found = made, vectorlint.lint(made, expected, request.dim, request.near)
    answer = summary(rows, found) | {"file": str(path)}
    if queries is not None:
        answer["queries"] = queries.as_json()
    if request.lint is None:
        answer["picture"] = str(path.with_suffix(".png"))
    if as_json:
        print(json.dumps(answer))
    else:
        show(answer, console)
    return 0 if answer["ok"] else 1


def class_names(request: Request) -> tuple[str, ...] | None:
    """The class names in label order, from whichever source was given.

    Raises:
        ConfigError: more than one source, or none where vectors are to be made.
        DataError: a file or folder that gives no names, or names that cannot be told apart.
    """
    sources = {"--names": request.names, "--names-from": request.names_from, "--dataset": request.dataset}
    given = [option for option, value in sources.items() if value is not None]
    if len(given) > 1 or (not given and request.lint is None):
        found = " and ".join(given) or "none of them"
        msg = f"Expected one of {', '.join(sources)} to name the classes, found {found}."
        raise ConfigError(msg)
    if request.names is not None:
        names = tuple(name.strip() for name in request.names.split(","))
    elif request.names_from is not None:
        from vlkd_distill.templates import read_text

        lines = read_text(request.names_from, "class names").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    elif request.dataset == DEMO:
        from vlkd_distill.demo.scene import CLASSES

        names = CLASSES
    elif request.dataset is not None:
        from vlkd_distill.data import scan

        names = scan(Path(request.dataset)).classes
    else:
        return None
    check_names(names)
    return names


def make(
    request: Request, names: Sequence[str], load: Callable[[str], Teacher] | None = None
) -> tuple[ClassVectors, QueryReport | None]:
    """Embed the classes, write the vectors and, beside them, the picture.

    Returns:
        The vectors, and what a teacher whose questions are counted was asked.

    Raises:
        UsageError: the caller's mistake, or a package or teacher that is not there.
    """
    from vlkd_distill.class_vectors import check_attributes, compute, read_attributes
    from vlkd_distill.teacher_names import check_name
    from vlkd_distill.templates import templates_from

    if len(names) < 2:
        msg = f"Expected at least two classes to tell apart, found {', '.join(names) or 'none'}: name more."
        raise ConfigError(msg)
    if request.out.suffix != ".safetensors":
        msg = f"--out {request.out}: expected a name that ends in .safetensors; the picture's ends in .png."
        raise ConfigError(msg)
    check_name(request.teacher)
    templates, attributes = templates_from(request.templates), None
    if request.attributes == DEMO:
        from vlkd_distill.demo.attributes import ATTRIBUTES

        own = {name: phrases for name, phrases in ATTRIBUTES.items() if name in names}
        attributes = check_attributes(own, names, where="--attributes demo")
    elif request.attributes is not None:
        attributes = read_attributes(Path(request.attributes), names)
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        msg = f"Packages are not installed ({', '.join(missing)}): pip install 'vlkd-edge[build]'"
        raise UnavailableError(msg)
    if load is None:
        from vlkd_distill.teachers import OpenClipTeacher

        load = OpenClipTeacher.load
    from .questions import asked_of

    teacher = load(request.teacher)
    made = compute(teacher, names, templates, attributes)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    made.save(request.out)
    write_bytes(request.out.with_suffix(".png"), picture(made, request.near))
    return made, asked_of(teacher)


def summary(rows: ClassVectors | vectorlint.Rows | None, found: Sequence[Finding]) -> dict[str, Any]:
    """What is known of the vectors, as plain values."""
    answer: dict[str, Any] = {
        "ok": not any(finding.severity == "error" for finding in found),
        "findings": [dataclasses.asdict(finding) for finding in found],
    }
    if not isinstance(rows, ClassVectors):
        return answer
    table = vectorlint.cosines(rows.vectors)
    pairs = table[np.triu_indices(len(table), 1)]
    np.fill_diagonal(table, -np.inf)
    best = [int(row.argmax()) for row in table]
    classes: list[dict[str, Any]] = []
    for i, (name, prompts) in enumerate(zip(rows.names, rows.prompts, strict=True)):
        other, cosine = (rows.names[best[i]], float(table[i, best[i]])) if pairs.size else (None, None)
        classes.append({"name": name, "nearest": other, "cosine": cosine, "prompts": list(prompts)})
    return answer | {
        "classes": classes,
        "mean_cosine": float(pairs.mean()) if pairs.size else None,
        "dim": rows.vectors.shape[1],
        "templates": list(rows.templates),
        "teacher": rows.teacher,
        "teacher_fingerprint": rows.teacher_fingerprint,
        "logit_scale": rows.logit_scale,
    }


def show(answer: dict[str, Any], console: Console) -> None:
    """Print a summary for people."""
    if "classes" in answer:
        table = Table("class", "nearest", "cosine", "prompts", "first prompt", box=None)
        for one in answer["classes"]:
            cosine = "" if one["cosine"] is None else f"{one['cosine']:.3f}"
            prompts, count = one["prompts"], str(len(one["prompts"]))
            table.add_row(
                *map(Text, (one["name"], one["nearest"] or "", cosine, count, "".join(prompts[:1])))
            )
        console.print(table)
        line = f"\n{len(answer['classes'])} classes of {answer['dim']} values, teacher {answer['teacher']}"
        if answer["mean_cosine"] is not None:
            line += f"; mean cosine between classes {answer['mean_cosine']:.3f}, the lower the better"
        console.print(f"{line}.", markup=False, highlight=False, soft_wrap=True)
    for one in answer["findings"]:
        mark = Text(f"{one['severity']}: ", style="bold red" if one["severity"] == "error" else "yellow")
        console.print(mark + Text(f"{one['message']} {one['advice']}", style=""), soft_wrap=True)
    if not answer["findings"]:
        console.print("Nothing to object to.", highlight=False)
    if "queries" in answer:
        told = f"Questions to the teacher: {answer['queries']['text']}."
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    written = [answer[key] for key in ("file", "picture") if key in answer]
    console.print(", ".join(written), style="dim", markup=False, highlight=False, soft_wrap=True)


def picture(vectors: ClassVectors, near: float) -> bytes:
    """The cosines between classes as a PNG heat map; pairs from ``near`` on are framed.

    The diagonal, one by definition, is left white, so that the colours span what differs.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    count, table = len(vectors.names), vectorlint.cosines(vectors.vectors)
    np.fill_diagonal(table, np.nan)
    # Inches: room for a value in each cell, then for a name beside each, then no more than a screen takes.
    side = max(
        3.2, count * (0.42 if count <= _VALUES_UP_TO else 0.15 if count <= _LABELS_UP_TO else 20 / count)
    )
    size = 9 + side / 4
    figure = Figure(figsize=(side + 2.6, side + 1.9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        table, cmap=mpl.colormaps["viridis"].with_extremes(bad="white"), interpolation="nearest"
    )
    _write_names(axes, vectors.names)
    if count <= _VALUES_UP_TO:
        _write_values(axes, table, image)
    framed = np.argwhere(np.nan_to_num(table, nan=-1.0) >= near)
    for i, j in framed:
        axes.add_patch(mpl.patches.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="red", lw=1.5))
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, pad=0.02)
    bar.set_label("cosine between class vectors", fontsize=size)
    bar.ax.tick_params(labelsize=size)
    bar.outline.set_visible(False)
    title = f"Class vectors of {count} classes, teacher {vectors.teacher}"
    title += f"; framed: {near:g} and above" if len(framed) else ""
    axes.set_title(title, fontsize=size, loc="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _write_names(axes: Axes, names: Sequence[str]) -> None:
    places = range(0, len(names), -(-len(names) // _LABELS_UP_TO))
    labels = [names[place] if len(names[place]) <= 28 else f"{names[place][:27]}…" for place in places]
    size = 9 if len(names) <= _VALUES_UP_TO else 7
    axes.set_xticks(places, labels, fontsize=size, rotation=90, parse_math=False)
    axes.set_yticks(places, labels, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _write_values(axes: Axes, table: npt.NDArray[np.float64], image: Any) -> None:
    for i, j in np.argwhere(~np.isnan(table)):
        red, green, blue, _ = image.cmap(image.norm(table[i, j]))
        colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
        axes.text(
            j, i, f"{round(table[i, j], 2) + 0:.2f}", ha="center", va="center", fontsize=8, color=colour
        )
