"""What small images cost a teacher: test images reduced and enlarged again, and the network run on a smaller grid.

Example:
    python benchmarks/teacher_grid.py pacs-teacher-grid --teacher local-dir:TEACHER --data PACS --sides 96 128 160

The first row of each side keeps the teacher's own grid and takes away what the smaller image does not hold; the second
runs the same weights on the smaller grid. Apart, they say whether a student of that size lacks information or network.
The result is ``benchmarks/results/NAME.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from rich.progress import track

from vlkd_bench.machine import read_machine
from vlkd_distill.augment import clean_views
from vlkd_distill.class_vectors import compute
from vlkd_distill.data import scan
from vlkd_distill.teacher_names import open_clip_names
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_distill.templates import templates_from
from vlkd_distill.zero_shot import predict
from vlkd_runtime.atomic import write_text
from vlkd_runtime.preprocess import PreprocessSpec, prepare

RESULTS = Path(__file__).parent / "results"
AT_ONCE = 32


def main() -> None:
    """Ask the teacher in every way, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="name of the result files")
    parser.add_argument("--teacher", required=True, help="open_clip model, or local-dir:<folder>")
    parser.add_argument("--data", type=Path, required=True, help="folder of <domain>/<class>/<image>")
    parser.add_argument("--templates", default="photo")
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128, 160], help="pixels")
    parser.add_argument("--stand-in", default="", help="what the teacher stands in for")
    asked = parser.parse_args()
    data = scan(asked.data)
    samples = data.of(data.domains, "test")
    teacher = OpenClipTeacher.load(asked.teacher)
    vectors = compute(teacher, data.classes, templates_from(asked.templates))
    rows = []
    for side in asked.sides:
        images = np.stack([prepare(sample.path, PreprocessSpec(side, side)) for sample in samples])
        own = teacher.image_size[0]
        for grid in (own, side):
            asking = teacher if grid == own else on_grid(asked.teacher, grid)
            parts = range(0, len(images), AT_ONCE)
            found = [
                embed(asking, images[start : start + AT_ONCE], grid)
                for start in track(parts, f"images {side}, grid {grid}", transient=True)
            ]
            answers = predict(np.concatenate(found), vectors, samples)
            accuracy = {
                name: float(np.mean([row.prediction == row.label for row in answers if row.domain == name]))
                for name in data.domains
            }
            rows.append({"image": side, "grid": grid, "accuracy": accuracy})
    table = {
        "stand_in": asked.stand_in,
        "rows": rows,
        "images": len(samples),
        "machine": read_machine().describe().partition(", load ")[0],
        "command": f"python benchmarks/teacher_grid.py {asked.name} --teacher TEACHER --data DATA "
        f"--templates {asked.templates} --sides {' '.join(map(str, asked.sides))}",
    }
    write_text(RESULTS / f"{asked.name}.json", json.dumps(table, indent=1) + "\n")
    write_text(RESULTS / f"{asked.name}.md", render(asked.name, table, data.domains))


def on_grid(name: str, side: int) -> OpenClipTeacher:
    """The same weights, told that its images have another size; only networks without positions can."""
    architecture, tag = open_clip_names(name)
    model, preprocess = open_clip.create_model_from_pretrained(
        architecture, pretrained=tag, weights_only=True
    )
    model.visual.image_size = side
    return OpenClipTeacher(name, model, preprocess, open_clip.get_tokenizer(architecture))


def embed(teacher: OpenClipTeacher, images: np.ndarray, grid: int) -> np.ndarray:
    """Embed uint8 images ``(N, S, S, 3)``, enlarged to the grid if they are smaller: unit rows ``(N, D)``."""
    views = F.interpolate(
        clean_views(torch.from_numpy(images)), (grid, grid), mode="bicubic", align_corners=False
    )
    return teacher.embed_views(views.clamp(0.0, 1.0)).numpy()


def render(name: str, table: dict[str, Any], domains: tuple[str, ...]) -> str:
    """The table as Markdown."""
    lines = [f"# {name}", "", *([f"> {table['stand_in']}", ""] if table["stand_in"] else [])]
    lines += [
        f"The teacher's zero-shot accuracy in percent on {table['images']} test images that were reduced to *image* "
        "pixels a side and enlarged again to the *grid* that its network runs on.",
        "",
        f"| image | grid | {' | '.join(domains)} | mean |",
        "|---|---|" + "---|" * (len(domains) + 1),
    ]
    for row in table["rows"]:
        cells = [row["accuracy"][domain] for domain in domains]
        values = " | ".join(f"{100 * value:.1f}" for value in (*cells, sum(cells) / len(cells)))
        lines.append(f"| {row['image']} | {row['grid']} | {values} |")
    return "\n".join([*lines, "", f"    {table['command']}", "", f"Machine: {table['machine']}.", ""])


if __name__ == "__main__":
    main()
