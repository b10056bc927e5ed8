"""What a climb found, as JSON values, as a Markdown table and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .ladder import Attempt, Climb
from .prune.settings import Pruned
from .ranking import Ranking

NOT_COUNTED = (
    "TensorRT fuses when an engine is finished on its GPU: without one, its inspector opens no engine, and there is "
    "nothing to count"
)
PASS, FAIL, UNDECIDED, REFUSED = "#1a7f37", "#b42318", "#b26a00", "#6b7280"


def as_json(climb: Climb, ranking: Ranking | None = None) -> dict[str, Any]:
    """Every candidate with its figures, what was chosen, and the ranking where there was one."""
    return {
        "candidates": [candidate_json(item) for item in climb.attempts],
        "chosen": climb.chosen.name if climb.chosen else None,
        "best": climb.best.name if climb.best else None,
        "budget": asdict(climb.budget),
        "reason": "" if climb.chosen else climb.explain(),
        "seconds": round(climb.seconds, 1),
        "ranking": None if ranking is None else asdict(ranking),
    }


def candidate_json(item: Attempt) -> dict[str, Any]:
    """One candidate: what was done, drops with bounds, latency, size and fused operators."""
    made, verdict = item.made, item.trial.verdict if item.trial else None
    speed, fused, recipe = made.speed, made.fused, made.rung.recipe
    return {
        "name": item.name,
        "steps": list(made.candidate.steps if made.candidate else made.rung.steps),
        "kept_float": list(recipe.keep_float) if recipe else [],
        "verdict": verdict.verdict if verdict else "refused",
        "reason": verdict.reason if verdict else made.refusal,
        "worst": None
        if verdict is None
        else {
            "domain": verdict.worst_domain,
            "drop": verdict.worst.drop,
            "upper": verdict.worst.upper,
        },
        "mean": None if verdict is None else {"drop": verdict.mean.drop, "upper": verdict.mean.upper},
        "domains": {}
        if verdict is None
        else {
            name: {"n": drop.n, "drop": drop.drop, "upper": drop.upper}
            for name, drop in verdict.domains.items()
        },
        "virtual": verdict.comparison.virtual if verdict else None,
        "flip_rate": verdict.flip_rate if verdict else None,
        "images": len(item.trial.rows) if item.trial else 0,
        "confidence": verdict.budget.upper_confidence if verdict else None,
        "latency_ms": speed.candidate_ms if speed else None,
        "float_latency_ms": speed.float_ms if speed else None,
        "speed": asdict(speed) if speed else None,
        "size_bytes": made.size_bytes,
        "fused": asdict(fused) if fused else None,
        "fused_reason": "" if fused or made.candidate is None else NOT_COUNTED,
        "pruned": asdict(made.pruned) if made.pruned else None,
        "model": str(made.candidate.path) if made.candidate else None,
    }


def markdown(climb: Climb, float_bytes: int, ranking: Ranking | None = None) -> str:
    """The candidates as a table, in the order tried."""
    slim = any(item.made.pruned is not None for item in climb.attempts)
    lines = [
        "| candidate | worst domain: drop, at most | mean: drop, at most | speed against float | size | "
        f"{'multiply-adds left | ' * slim}in INT8 | verdict |",
        f"|---|---|---|---|---|{'---|' * slim}---|---|",
    ]
    for item in climb.attempts:
        made, verdict = item.made, item.trial.verdict if item.trial else None
        worst = mean = "not judged"
        if verdict is not None:
            worst = f"{verdict.worst_domain}: {verdict.worst.drop:.2f}, {verdict.worst.upper:.2f}"
            mean = f"{verdict.mean.drop:.2f}, {verdict.mean.upper:.2f}"
        speed = "not measured here"
        if made.speed is not None:
            speed = f"{made.speed.ratio:.2f} ({made.speed.ratio_low:.2f} to {made.speed.ratio_high:.2f})"
        size = f"{made.size_bytes / 1e6:.2f} MB" if made.size_bytes else ""
        fused = f"{made.fused.integer} of {made.fused.planned}" if made.fused else ""
        said = f"**{verdict.verdict}**" if verdict else f"refused: {made.refusal}"
        name = f"**{item.name}**" if item is climb.chosen else item.name
        left = f"{_left(made.pruned)} | " if slim else ""
        lines.append(f"| {name} | {worst} | {mean} | {speed} | {size} | {left}{fused} | {said} |")
    budget = climb.budget
    lines += [
        "",
        f"Drops in points; budget {budget.worst_points:g} for the worst domain and {budget.mean_points:g} for the mean "
        f"at {100 * budget.confidence:g} % confidence, shared among the rungs. The float graph has "
        f"{float_bytes / 1e6:.2f} MB.",
    ]
    if climb.chosen is not None and climb.chosen.made.candidate is not None:
        lines += ["", f"Chosen: **{climb.chosen.name}** ({'; '.join(climb.chosen.made.candidate.steps)})."]
    else:
        lines += ["", climb.explain()]
    if ranking is not None and ranking.groups:
        lines += [
            "",
            f"Layers by margin flips on {ranking.domain} ({ranking.images} ranking images) for each "
            f"{ranking.unit.removesuffix('s')} saved, highest first:",
            "",
            f"| layers | margin flips | {ranking.unit} |",
            "|---|---|---|",
        ]
        for group in ranking.groups[:8]:
            names = group.layers[0] if len(group.layers) == 1 else f"{group.layers[0]} to {group.layers[-1]}"
            lines.append(f"| {names} | {group.harm:.2f} | {group.saved_us:.1f} |")
    return "\n".join(lines) + "\n"


def _left(pruned: Pruned | None) -> str:
    """Share of the multiply-adds that pruning left, and whether weights are sparse."""
    if pruned is None:
        return ""
    sparse = f", 2:4 in {pruned.sparse_layers} of {pruned.layers} layers" if pruned.sparse_layers else ""
    return f"{100 * pruned.macs / pruned.dense_macs:.1f} %{sparse}"


def picture(climb: Climb, float_bytes: int) -> bytes:
    """Draw worst-domain drop with its bound against latency and against size, as a PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    judged = [item for item in climb.attempts if item.trial is not None]
    timed = any(item.made.speed is not None for item in judged)
    with mpl.rc_context({"font.size": 9, "axes.linewidth": 0.6, "text.parse_math": False}):
        figure = Figure(figsize=(10.5 if timed else 6.4, 4.4), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        panels = [figure.add_subplot(1, 2 if timed else 1, 2 if timed else 1)]
        if timed:
            panels.insert(0, figure.add_subplot(1, 2, 1))
        for number, axes in enumerate(panels):
            by_time = timed and number == 0
            points: list[tuple[float, Attempt]] = []
            for item in judged:
                speed = item.made.speed
                x = (speed.candidate_ms if speed else None) if by_time else item.made.size_bytes / 1e6
                if x is not None:
                    points.append((x, item))
            speeds = [item.made.speed.float_ms for _, item in points if item.made.speed]
            start = (sorted(speeds)[len(speeds) // 2] if speeds else 0.0) if by_time else float_bytes / 1e6
            _panel(axes, points, start, climb)
            label = "milliseconds a call, in turns with the float graph" if by_time else "megabytes"
            axes.set_xlabel(label)
        panels[0].set_ylabel("drop of the worst domain, points")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: Any, points: list[tuple[float, Attempt]], start: float, climb: Climb) -> None:
    """One panel: a dot a candidate with a line up to its bound, the float graph at zero, the budget dashed."""
    colours: Mapping[str, str] = {"pass": PASS, "fail": FAIL, "inconclusive": UNDECIDED}
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axhline(climb.budget.worst_points, color="#111827", linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "budget",
        (1, climb.budget.worst_points),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color="#111827",
    )
    axes.plot(start, 0, "s", color=REFUSED, markersize=6)
    axes.annotate("float", (start, 0), xytext=(6, 5), textcoords="offset points", color=REFUSED)
    for x, item in points:
        assert item.trial is not None
        verdict = item.trial.verdict
        colour, worst = colours[verdict.verdict], verdict.worst
        axes.plot((x, x), (worst.drop, worst.upper), color=colour, linewidth=1.5)
        axes.plot(x, worst.upper, "_", color=colour, markersize=9, markeredgewidth=1.6)
        axes.plot(x, worst.drop, "o", color=colour, markersize=6)
        weight = "bold" if item is climb.chosen else "normal"
        axes.annotate(
            item.name,
            (x, worst.drop),
            xytext=(6, -3),
            textcoords="offset points",
            color=colour,
            fontsize=8,
            weight=weight,
        )
    values = [start, *(x for x, _ in points)]
    room = max(max(values) - min(values), 0.1 * max(values))
    axes.set_xlim(max(0.0, min(values) - 0.1 * room), max(values) + 0.45 * room)
