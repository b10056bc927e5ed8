"""Synthetic domains on disk: what a sentence asks for is drawn, and an interrupted set is the same set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_distill import data, demo
from vlkd_distill.demo_synthesis import DemoSynthesiser, read_prompt
from vlkd_distill.synthesis import SyntheticSet, write_synthetic
from vlkd_distill.wording import Prompt
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.preprocess import decode


def prompt(class_name: str, text: str | None) -> Prompt:
    return Prompt(class_name, text, None if text else np.ones(4, np.float32), "test")


PROMPTS = (
    prompt("car", "a painting of a red car"),
    prompt("car", "a sketch of a car on a street"),
    prompt("cat", "a photo of a small cat"),
)


class Counting:
    """Draws a grey level for each image out of its seed; may be killed after some of them."""

    name, fingerprint = "counting", "1"

    def __init__(self, dies_at: int | None = None) -> None:
        self.drawn, self.dies_at = 0, dies_at

    def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
        for index, one in enumerate(prompts):
            if self.drawn == self.dies_at:
                raise KeyboardInterrupt
            self.drawn += 1
            digest = hashlib.sha256(f"{seed} {index} {one.text}".encode()).digest()
            yield Image.new("RGB", (8, 8), tuple(digest[:3]))


class Refusing:
    """Accepts what is bright enough: some images never, some at a later try."""

    def __init__(self, least: int) -> None:
        self.least, self.fingerprint = least, f"refusing {least}"

    def __call__(self, images: Sequence[Image.Image], class_names: Sequence[str]) -> list[bool]:
        assert len(images) == len(class_names)
        return [image.getpixel((0, 0))[0] >= self.least for image in images]


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def made(folder: Path, synthesiser: object = None, per_class: int = 20, **more: object) -> SyntheticSet:
    return write_synthetic(folder, synthesiser or Counting(), PROMPTS, per_class, 7, **more)


def test_a_class_gets_its_images_and_its_prompts_take_turns(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    class Telling(Counting):
        def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
            seen.extend((one.class_name, one.text) for one in prompts)
            return super().synthesise(prompts, seed)

    finished: list[int] = []
    result = made(tmp_path, Telling(), 5, progress=finished.append)
    texts = [one.text for one in PROMPTS]
    assert seen == [
        *[("car", text) for text in (texts[0], texts[1], texts[0], texts[1], texts[0])],
        *[("cat", texts[2])] * 5,
    ]
    assert result == SyntheticSet(tmp_path, "synthetic-counting", 10, 0, ())
    assert sum(finished) == 10
    found = data.scan(tmp_path)
    assert found.domains == ("synthetic-counting",) and found.classes == ("car", "cat")
    assert len(found.samples) == 10
    record = json.loads((tmp_path / "synthetic-counting.json").read_text())
    assert [one["text"] for one in record["prompts"]] == texts and record["seed"] == 7
    assert not (tmp_path / "synthetic-counting.part.json").exists()


@pytest.mark.parametrize("dies_at", [0, 7, 16, 20, 39])
@pytest.mark.parametrize("judge", [None, Refusing(120)], ids=["all", "judged"])
def test_an_interrupted_set_is_the_same_set(tmp_path: Path, dies_at: int, judge: Refusing | None) -> None:
    whole = Counting()
    expected = made(tmp_path / "whole", whole, judge=judge)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "cut", Counting(dies_at), judge=judge)
    rest = Counting()
    result = made(tmp_path / "cut", rest, judge=judge)
    assert (result.images, result.regenerated, result.dropped) == (
        expected.images, expected.regenerated, expected.dropped,
    )  # fmt: skip
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert rest.drawn <= whole.drawn - 16 * (dies_at >= 20 and judge is None)


def test_a_finished_set_is_not_drawn_again_and_a_lost_image_is(tmp_path: Path) -> None:
    made(tmp_path)
    before, idle = contents(tmp_path), Counting()
    made(tmp_path, idle)
    assert idle.drawn == 0
    (tmp_path / "synthetic-counting/car/00003.png").unlink()
    made(tmp_path, idle)
    assert 0 < idle.drawn <= 16
    assert contents(tmp_path) == before


def test_a_judge_has_images_drawn_again_and_then_dropped(tmp_path: Path) -> None:
    result = made(tmp_path, judge=Refusing(120))
    kept = sorted((tmp_path / result.domain).rglob("*.png"))
    assert len(kept) == result.images == 40 - len(result.dropped)
    assert all(np.asarray(decode(path))[0, 0, 0] >= 120 for path in kept)
    names = {str(path.relative_to(tmp_path / result.domain)) for path in kept}
    assert not names & set(result.dropped)
    # Two thirds of two thirds of the refused come to a third try; each try past the first is counted.
    assert result.regenerated >= 2 * len(result.dropped) > 0
    nothing = made(tmp_path / "none", judge=Refusing(256))
    assert nothing.images == 0 and nothing.regenerated == 80 and len(nothing.dropped) == 40


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda folder: made(folder, per_class=21), "one of other prompts, seed, judge or synthesiser"),
        (lambda folder: made(folder, judge=Refusing(1)), "one of other prompts, seed, judge or synthesiser"),
        (
            lambda folder: write_synthetic(folder, Counting(), PROMPTS, 20, 8),
            "one of other prompts, seed, judge or synthesiser",
        ),
        (
            lambda folder: (folder / "synthetic-counting.json").write_text("{") and made(folder),
            r"a damaged record synthetic-counting\.json",
        ),
        (
            lambda folder: (folder / "synthetic-counting.json").unlink() or made(folder),
            "images without a record",
        ),
    ],
    ids=["count", "judge", "seed", "damaged", "no record"],
)
def test_another_set_of_the_same_name_is_refused(
    tmp_path: Path, change: Callable[[Path], object], match: str
) -> None:
    made(tmp_path)
    before = contents(tmp_path / "synthetic-counting")
    with pytest.raises(DataError, match=match):
        change(tmp_path)
    assert contents(tmp_path / "synthetic-counting") == before


@pytest.mark.parametrize(
    ("prompts", "per_class", "domain", "match"),
    [
        ((), 3, None, "found 0 prompts and 3 images"),
        (PROMPTS, 0, None, "3 prompts and 0 images"),
        ((prompt("../x", "a car"),), 1, None, r"that can be a folder's, found '\.\./x'"),
        ((prompt("", "a car"),), 1, None, "that can be a folder's, found ''"),
        (PROMPTS, 1, ".hidden", "that can be a folder's, found '.hidden'"),
    ],
    ids=["no prompt", "no image", "path", "empty", "hidden"],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, prompts: Sequence[Prompt], per_class: int, domain: str | None, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        write_synthetic(tmp_path / "out", Counting(), prompts, per_class, 0, domain=domain)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a sketch of a red car in a meadow", ("car", "sketch", "red", "meadow")),
        ("an oil painting and neon sign of a cat", ("cat", "painting neon", "", "")),
        ("a black and white drawing of a white mug", ("mug", "sketch", "white", "")),
        ("pink, a fish, cartoon, by the sea", ("fish", "cartoon", "pink", "sea")),
        ("A Photo of a TREE", ("tree", "photo", "", "")),
        ("a carpet", ("", "", "", "")),
    ],
    ids=["all", "two styles", "style with colour words", "no grammar", "capitals", "part of a word"],
)
def test_the_demo_reads_a_sentence(text: str, expected: tuple[str, ...]) -> None:
    said = read_prompt(text)
    found = [" ".join(said[field]) for field in ("class_name", "style", "colour", "background")]
    assert tuple(found) == expected


def drawn(texts: Sequence[str], seed: int = 0) -> np.ndarray:
    synthesiser = DemoSynthesiser(size=48)
    images = synthesiser.synthesise([prompt("car", text) for text in texts], seed)
    return np.stack([np.asarray(image, dtype=np.int64) for image in images])


def test_the_demo_draws_what_the_sentence_says() -> None:
    sketch, photo = drawn(["a sketch of a car", "a photo of a car"])
    assert np.ptp(sketch, axis=-1).mean() < 12 < np.ptp(photo, axis=-1).mean()
    red, blue = (
        drawn(["a cartoon of a red car in the snow"] * 8),
        drawn(["a cartoon of a blue car in the snow"] * 8),
    )
    assert (red[..., 0] - red[..., 2]).mean() > (blue[..., 0] - blue[..., 2]).mean() + 5


def test_two_styles_are_the_blend_of_both() -> None:
    synthesiser = DemoSynthesiser(size=48)
    text = "a photo and neon sign of a red car in a meadow"
    image = np.asarray(next(synthesiser.synthesise([prompt("car", text)], 3)), dtype=np.int64)
    # The same draws as the synthesiser's, written out: four fields, then the pose.
    rng = np.random.default_rng([3, 0])
    free = {}
    for field, values, usual in (
        ("colour", demo.COLOURS, None), ("background", demo.BACKGROUNDS, None),
        ("size_word", demo.SIZES, "medium"), ("facing", demo.FACINGS, "right"),
    ):  # fmt: skip
        strays, other = rng.random() < 0.1, values[int(rng.integers(len(values)))]
        if usual is None:
            rng.integers(1)
        else:
            free[field] = other if strays else usual
    digest = hashlib.sha256(f"{text}\n{int(rng.integers(6))}".encode()).digest()
    scenes = [
        demo.Scene("car", style, "red", "meadow", seed=int.from_bytes(digest[:7], "big"), **free)
        for style in ("photo", "neon")
    ]
    first, second = (np.asarray(demo.render(scene, 48), dtype=np.int64) for scene in scenes)
    assert np.abs(image - (first + second) / 2).max() <= 1


def test_the_demo_repeats_one_sentence_and_varies_many() -> None:
    one = drawn(["a photo of a car"] * 40)
    assert len(np.unique(one.reshape(40, -1), axis=0)) < 30
    assert (drawn(["a photo of a car"] * 3) == one[:3]).all()
    assert (drawn(["a photo of a car"] * 40, seed=1) != one).any()


def test_the_demo_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ConfigError, match=r"names one of airplane, .*found 'a photo of a dog'"):
        drawn(["a photo of a dog"])
    with pytest.raises(ConfigError, match="Expected a prompt in words for the synthesiser 'demo'"):
        next(DemoSynthesiser().synthesise([prompt("car", None)], 0))
