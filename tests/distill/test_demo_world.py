"""The demo world: what it renders, says and writes, and that it always renders, says and writes the same."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlkd_distill.demo as demo
from vlkd_distill.demo import ATTRIBUTES, CLASSES, COLOURS, STYLE_WORDS, STYLES, Scene, sample_scene
from vlkd_distill.demo.captions import Caption, describe
from vlkd_distill.demo.raster import OVERSAMPLING, Canvas
from vlkd_distill.demo.shapes.geometry import box
from vlkd_runtime.errors import ConfigError, DataError, VlkdError

FACE = {
    "ATTRIBUTES",
    "BACKGROUNDS",
    "CLASSES",
    "COLOURS",
    "FACINGS",
    "SIZES",
    "STYLES",
    "STYLE_WORDS",
    "TEACHER_FOLDER",
    "TYPICAL",
    "Scene",
    "caption",
    "contact_sheet",
    "render",
    "sample_scene",
    "write_world",
}


def pixels(scene: Scene, size: int = 48) -> np.ndarray:
    return np.asarray(demo.render(scene, size))


def test_the_face_is_what_is_promised_and_imports_nothing_heavy() -> None:
    assert set(demo.__all__) == FACE
    code = "import sys, vlkd_distill.demo; print(sorted({'torch', 'timm', 'open_clip'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_sixteen_sorted_classes_in_five_styles() -> None:
    assert len(CLASSES) == 16
    assert list(CLASSES) == sorted(set(CLASSES))
    assert STYLES == ("photo", "painting", "cartoon", "sketch", "neon")


@pytest.mark.parametrize("style", STYLES)
def test_every_class_renders_in_every_style(style: str) -> None:
    for class_name in CLASSES:
        scene = sample_scene(3, style, class_name, 0)
        image = demo.render(scene, 48)
        assert (image.mode, image.size) == ("RGB", (48, 48))
        assert np.asarray(image).std() > 8, f"{class_name} in {style} is nearly blank"


@pytest.mark.parametrize("style", STYLES)
def test_the_class_shows(style: str) -> None:
    """With every word and number but the class equal, another class is another picture."""
    pictures = {c: pixels(Scene(c, style, "red", "plain", seed=5)).tobytes() for c in CLASSES}
    assert len(set(pictures.values())) == len(CLASSES)


def test_a_sketch_has_no_colour_and_the_other_styles_do() -> None:
    for class_name in CLASSES:
        grey = pixels(sample_scene(1, "sketch", class_name, 0))
        assert (grey == grey[..., :1]).all()
    for style in set(STYLES) - {"sketch"}:
        red = pixels(Scene("mug", style, "red", "plain", "large", seed=2)).astype(int)
        assert (red[..., 0] - red[..., 2] > 60).mean() > 0.03, style


@pytest.mark.parametrize("style", STYLES)
def test_any_size_shows_the_same_picture(style: str) -> None:
    scene = sample_scene(4, style, "tree", 1)
    for size in (16, 33, 64):
        assert demo.render(scene, size).size == (size, size)
    small = demo.render(scene, 64).convert("L").resize((16, 16), Image.Resampling.BOX)
    large = demo.render(scene, 128).convert("L").resize((16, 16), Image.Resampling.BOX)
    alike = np.corrcoef(np.asarray(small, float).ravel(), np.asarray(large, float).ravel())[0, 1]
    assert alike > 0.75


def test_edges_are_smooth() -> None:
    """A third of a pixel covered is a third as bright."""
    canvas = Canvas(16, "L", 0)
    canvas.fill(box(0.0, 0.0, (5 + 1 / OVERSAMPLING) / 16 - 0.5 / (16 * OVERSAMPLING), 1.0), 255)
    row = np.asarray(canvas.reduced())[8]
    assert row[:5].tolist() == [255] * 5
    assert row[5] == 85
    assert row[6:].tolist() == [0] * 10


def test_facing_mirrors_the_shape() -> None:
    right = Scene("snail", "cartoon", "red", "plain", "medium", "right", seed=1)
    left = Scene("snail", "cartoon", "red", "plain", "medium", "left", seed=1)
    assert pixels(right).tobytes() != pixels(left).tobytes()


def test_scenes_are_a_function_of_their_arguments() -> None:
    keys = [(seed, style, c, k) for seed in (0, 1) for style in STYLES for c in CLASSES for k in range(3)]
    scenes = [sample_scene(*key) for key in keys]
    assert scenes == [sample_scene(*key) for key in keys]
    assert len({scene.seed for scene in scenes}) == len(keys)


@pytest.mark.parametrize(
    ("style", "colour_share", "background_share"),
    [
        ("photo", 0.65 + 0.35 / 10, 0.65 + 0.35 / 8),
        ("painting", 0.65 + 0.35 / 10, 0.65 + 0.35 / 8),
        ("cartoon", 0.65 + 0.35 / 10, 0.65 + 0.35 / 8),
        ("sketch", None, 1 / 8),
        ("neon", None, 1 / 8),
    ],
)
def test_how_far_colour_and_background_give_the_class_away(
    style: str, colour_share: float | None, background_share: float
) -> None:
    scenes = [sample_scene(9, style, c, k) for c in CLASSES for k in range(60)]
    typical = [demo.TYPICAL[s.class_name] for s in scenes]
    backgrounds = np.mean([s.background == t[1] for s, t in zip(scenes, typical, strict=True)])
    assert backgrounds == pytest.approx(background_share, abs=0.06)
    if colour_share is not None:
        colours = np.mean([s.colour == t[0] for s, t in zip(scenes, typical, strict=True)])
        assert colours == pytest.approx(colour_share, abs=0.06)
    elif style == "sketch":
        assert {s.colour for s in scenes} == {"grey"}
    else:
        assert max(Counter(s.colour for s in scenes).values()) < 0.2 * len(scenes)


@pytest.mark.parametrize("style", STYLES)
def test_captions_say_only_what_is_true_and_in_the_end_everything(style: str) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(2, style, c, k) for c in CLASSES for k in range(25)]
    captions = [describe(scene, rng) for scene in scenes]
    assert all(one.fits(scene) for one, scene in zip(captions, scenes, strict=True))
    said = Counter(field for one in captions for field, _ in one.claims)
    expected = {"class_name", "style", "background", "size_word", "facing", "colour"}
    assert set(said) == expected - ({"colour"} if style == "sketch" else set())
    assert said["class_name"] > 0.9 * len(captions)
    for one, scene in zip(captions, scenes, strict=True):
        words, claims = one.text.replace(",", "").split(), dict(one.claims)
        assert ("colour" in claims) == (scene.colour in words and scene.colour in COLOURS)
        assert ("style" in claims) == any(word in one.text for word in STYLE_WORDS[style])
        assert ("facing" in claims) == ("facing" in words)
    named = [scene.class_name in one.text for one, scene in zip(captions, scenes, strict=True)]
    assert np.mean(named) > 0.75
    assert len({one.text for one in captions}) > 0.6 * len(captions)


def test_captions_follow_their_generator_alone() -> None:
    scene = sample_scene(0, "neon", "umbrella", 0)
    first = [demo.caption(scene, np.random.default_rng(7)) for _ in range(2)]
    assert first[0] == first[1]


def test_captions_use_the_right_article() -> None:
    rng = np.random.default_rng(1)
    texts = [demo.caption(sample_scene(0, s, c, k), rng) for s in STYLES for c in CLASSES for k in range(10)]
    words = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    pairs = [(first, second) for first, second in words if first in ("a", "an")]
    assert len(pairs) > 500
    assert all((first == "an") == (second[0] in "aeiou") for first, second in pairs)


def test_no_colour_is_true_of_a_sketch() -> None:
    scene = sample_scene(0, "sketch", "cat", 0)
    assert not Caption("a grey cat", (("class_name", "cat"), ("colour", "grey"))).fits(scene)
    assert Caption("a cat", (("class_name", "cat"),)).fits(scene)


def test_attributes_describe_every_class_without_naming_it() -> None:
    assert tuple(ATTRIBUTES) == CLASSES
    assert all(len(set(words)) >= 3 for words in ATTRIBUTES.values())
    assert not any(c in word for c, words in ATTRIBUTES.items() for word in words)
    shared = Counter(word for words in ATTRIBUTES.values() for word in words)
    assert {word for word, count in shared.items() if count > 1} >= {"wings", "a tail", "windows", "a stem"}


def test_a_contact_sheet_shows_every_class_and_style() -> None:
    sheet = demo.contact_sheet(seed=0, size=16)
    assert sheet.size == (5 * 18 + 2, 16 * 18 + 2)


def test_a_world_has_domainbed_folders_and_the_same_bytes_from_any_processes(tmp_path: Path) -> None:
    counts = {"sketch": 2, "photo": 1}
    done: list[int] = []
    one = demo.write_world(
        tmp_path / "one", per_class=counts, seed=8, size=24, processes=1, progress=done.append
    )
    two = demo.write_world(tmp_path / "two", per_class=counts, seed=8, size=24, processes=2)
    expected = {f"{s}/{c}/{k:05d}.png" for s, n in counts.items() for c in CLASSES for k in range(n)}
    files = {p.relative_to(one).as_posix() for p in one.rglob("*.png")}
    assert files == expected
    assert sum(done) == len(expected) == 48
    for name in expected:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    with Image.open(one / "sketch/bird/00001.png") as image:
        drawn = demo.render(sample_scene(8, "sketch", "bird", 1), 24)
        assert image.tobytes() == drawn.tobytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_an_interrupted_world_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.write_world(
            tmp_path / "world", per_class={"neon": 1}, seed=0, size=16, processes=1, progress=stop
        )
    assert list(tmp_path.iterdir()) == []


def refused_world(**changes: object) -> Callable[[Path], object]:
    arguments: dict[str, object] = {
        "per_class": {"photo": 1},
        "seed": 0,
        "size": 16,
        "processes": 1,
        **changes,
    }
    return lambda root: demo.write_world(root / "world", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda _: Scene("dog", "photo", "red", "sea"), ConfigError, "Unknown demo class 'dog'.*airplane"),
        (lambda _: Scene("cat", "oil", "red", "sea"), ConfigError, "Unknown demo style 'oil'.*photo"),
        (lambda _: Scene("cat", "photo", "teal", "sea"), ConfigError, "Unknown demo colour 'teal'"),
        (lambda _: Scene("cat", "photo", "red", "moon"), ConfigError, "Unknown demo background 'moon'"),
        (lambda _: Scene("cat", "photo", "red", "sea", "huge"), ConfigError, "Unknown demo size word 'huge'"),
        (lambda _: Scene("cat", "photo", "red", "sea", facing="up"), ConfigError, "Unknown demo facing 'up'"),
        (lambda _: Scene("cat", "photo", "red", "sea", seed=-1), ConfigError, "found -1"),
        (lambda _: sample_scene(0, "oil", "cat", 0), ConfigError, "Unknown demo style"),
        (lambda _: sample_scene(0, "photo", "dog", 0), ConfigError, "Unknown demo class"),
        (lambda _: sample_scene(-2, "photo", "cat", 0), ConfigError, "found seed -2 and index 0"),
        (
            lambda _: demo.render(sample_scene(0, "photo", "cat", 0), 4),
            ConfigError,
            "16 to 2048 pixels, found 4",
        ),
        (refused_world(per_class={}), ConfigError, "for some style, found none"),
        (refused_world(per_class={"oil": 1}), ConfigError, "Unknown demo style 'oil'"),
        (refused_world(per_class={"photo": 0}), ConfigError, "per class for style 'photo', found 0"),
        (refused_world(size=4000), ConfigError, "found 4000"),
        (refused_world(processes=0), ConfigError, "found seed 0 and 0 processes"),
        (refused_world(seed=-1), ConfigError, "found seed -1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, call: Callable[[Path], object], error: type[VlkdError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "world" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(DataError, match="expected nothing or an empty folder"):
        demo.write_world(tmp_path / "world", per_class={"photo": 1}, seed=0, size=16, processes=1)
    assert kept.read_text() == "mine"
