"""Captions through the verb: vlm-ood learns from them, says so, and a file that lacks some is refused at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlkd_distill.data import scan

Edge = Callable[..., tuple[int, dict[str, Any]]]


def test_captions_change_the_student_and_are_in_the_contract(
    tmp_path: Path, edge: Edge, write_data: Callable[..., Path]
) -> None:
    found = scan(write_data())
    path, train = tmp_path / "captions.jsonl", found.of(["photo"], "train")
    lines = [
        json.dumps({"image": s.image, "caption": f"picture {k} of a {found.classes[s.label]}"})
        for k, s in enumerate(train)
    ]
    words = ("bench", "dg", "--held-out", "sketch", "--methods", "vlm-ood")
    on = (f"data.captions={path}", "distill.caption_weight=1")

    code, answer = edge(*words, settings=on[1:])
    assert code == 2 and "expected a file of captions in data.captions" in answer["error"]["message"]
    path.write_text("\n".join(lines[2:]))
    code, answer = edge(*words, settings=on)
    assert code == 2 and f"no caption for 2 of {len(train)} train images" in answer["error"]["message"]
    assert train[0].image in answer["error"]["message"] and not (tmp_path / "out" / "stages").exists()

    path.write_text("\n".join(lines))
    code, table = edge(*words, settings=on)
    assert code == 0 and table["settings"]["caption_weight"] == 1
    (contract,) = table["contract"]
    assert contract["captions"] is True and "caption is embedded by the teacher" in contract["text"]
    code, plain = edge(*words)
    assert code == 0 and "caption_weight" not in plain["settings"] and "captions" not in plain["contract"][0]
    assert {row["key"] for row in table["rows"][1:]}.isdisjoint(row["key"] for row in plain["rows"][1:])
    students = [p.read_bytes() for p in (tmp_path / "out" / "stages").glob("vlm-ood-*/student.safetensors")]
    assert len(students) == 2 and students[0] != students[1]
    assert len(list((tmp_path / "out" / "stages").glob("captions-*"))) == 1
