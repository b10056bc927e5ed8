from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from vlkd_bench.predictions import (
    KEYS,
    OPTIONAL,
    PredictionRow,
    evaluate,
    read_predictions,
    write_predictions,
)
from vlkd_bench.samples import Sample
from vlkd_runtime.errors import DataError, ImageError

# The separator U+2028 ends a line for str.splitlines; quotes and braces are JSON's own.
NAMES = ("cat", 'a "dog" {}', "line\u2028end")


def row(index: int = 0, **changes: object) -> PredictionRow:
    fields: dict[str, object] = {
        "image": f"art/cat/{index}.png",
        "domain": "art",
        "label": 0,
        "prediction": 1,
        "probability": 0.75,
        "similarity": -0.125,
    }
    return PredictionRow(**(fields | changes))  # type: ignore[arg-type]


def line(**changes: object) -> str:
    fields = dict(zip((*KEYS, *OPTIONAL[:2]), ("art/cat/0.png", "art", "cat", "cat", 0.5, 0.25), strict=True))
    return json.dumps({k: v for k, v in (fields | changes).items() if v is not None})


def test_written_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    rows = (row(0), row(1, label=2, prediction=2), row(2, image="art/\udcff.png", probability=1 / 3))
    write_predictions(tmp_path / "p.jsonl", rows, NAMES)
    assert read_predictions(tmp_path / "p.jsonl", NAMES) == rows
    first = json.loads((tmp_path / "p.jsonl").read_text().split("\n")[0])
    assert tuple(first) == (*KEYS, *OPTIONAL[:2])
    assert (first["label"], first["prediction"]) == ("cat", 'a "dog" {}')


def test_a_line_separator_inside_a_name_ends_no_line(tmp_path: Path) -> None:
    unescaped = json.dumps(json.loads(line(label=NAMES[2])), ensure_ascii=False)
    assert "\u2028" in unescaped
    (tmp_path / "p.jsonl").write_text(unescaped, encoding="utf-8")
    assert read_predictions(tmp_path / "p.jsonl", NAMES)[0].label == 2


def test_indices_are_read_without_names(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(line(label=1, prediction=0) + "\n\n")
    assert read_predictions(tmp_path / "p.jsonl") == (
        row(0, label=1, prediction=0, probability=0.5, similarity=0.25),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(line() + "\n" + line()[:-9], r"p\.jsonl line 2, found: .*damaged", id="cut"),
        pytest.param("[1, 2]", r"one JSON object in .* line 1, found list", id="no object"),
        pytest.param(line(prediction=None), r"line 1, missing prediction", id="missing key"),
        pytest.param(line(source=3), r"non-empty text for 'source' .* found 3", id="source"),
        pytest.param(line() + "\n" + line(), r"found 'art/cat/0.png' twice", id="duplicate"),
        pytest.param(
            line(label="cow"), r"one of the 3 classes .* for 'label' in .* found 'cow'", id="unknown class"
        ),
        pytest.param(line(prediction=3), r"class index below 3 for 'prediction'", id="index too high"),
        pytest.param(line(label=True), r"class name or index for 'label' .* found True", id="bool"),
        pytest.param(line(probability=1.5), r"between 0 and 1 in .* line 1, found 1.5", id="probability"),
        pytest.param(line(similarity=float("nan")), r"finite number for 'similarity'", id="not finite"),
        pytest.param(line(domain=""), r"non-empty text for 'domain'", id="empty domain"),
        pytest.param("\n", r"at least one prediction", id="empty"),
        pytest.param("[" * 100_000, r"line 1, found", id="nested beyond reason"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / "p.jsonl", NAMES)


def test_names_are_needed_for_names(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(line())
    with pytest.raises(DataError, match="pass names="):
        read_predictions(tmp_path / "p.jsonl")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not UTF-8"])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="Expected a predictions file"):
        read_predictions(tmp_path / "p.jsonl", NAMES)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(label=3), "Expected label between 0 and 2"),
        (row(prediction=-1), "Expected prediction between 0 and 2"),
        (row(probability=float("nan")), "Expected finite numbers"),
    ],
    ids=["label", "prediction", "nan"],
)
def test_impossible_rows_are_not_written(tmp_path: Path, bad: PredictionRow, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_predictions(tmp_path / "p.jsonl", [row(9), bad], NAMES)
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class FakeAnswer:
    index: int
    probability: float = 0.5
    similarity: float = 0.25


class FakeClassifier:
    """Answers with the class whose number the file is named after."""

    def predict(self, image: Path, top: int = 5) -> FakeAnswer:
        if image.stem == "broken":
            msg = f"{image}: expected an image, found a truncated file."
            raise ImageError(msg)
        return FakeAnswer(int(image.stem))


def test_evaluate_asks_once_for_each_sample() -> None:
    samples = [Sample(Path(f"{i}.png"), f"art/cat/{i}.png", "art", 0) for i in (0, 2, 1)]
    seen: list[int] = []
    rows = evaluate(FakeClassifier(), samples, seen.append)
    assert [r.prediction for r in rows] == [0, 2, 1]
    assert [r.correct for r in rows] == [True, False, False]
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("stems", "message"),
    [
        (["0", "broken"], r"readable image at broken.png \(art/cat/broken.png\), found: .*truncated"),
        (["1", "1"], "found 'art/cat/1.png' twice"),
        ([], "at least one sample"),
    ],
    ids=["broken image", "duplicate", "nothing"],
)
def test_evaluate_refuses(stems: list[str], message: str) -> None:
    samples = [Sample(Path(f"{stem}.png"), f"art/cat/{stem}.png", "art", 0) for stem in stems]
    with pytest.raises(DataError, match=message):
        evaluate(FakeClassifier(), samples)
