"""Prompts: every rule says the class in words it was given, and what is held out stays unsaid."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from vlkd_distill import class_vectors, diversify, wording
from vlkd_distill.demo import CLASSES, STYLE_WORDS
from vlkd_distill.diversify import select_contrastive
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_distill.wording import DEMO, GENERAL, Vocabulary
from vlkd_runtime.errors import ConfigError

RULES = ("mix", "random", "contrastive")
NAMES = ("airplane", "snow_leopard", "car")


@pytest.fixture(scope="module")
def teacher() -> OpenClipTeacher:
    return OpenClipTeacher.load("demo")


def texts(rule: str, teacher: OpenClipTeacher, classes=NAMES, count: int = 12, **more) -> list[str]:
    made = diversify.diversify(rule, "sentence", classes, count, teacher=teacher, **more)
    assert [prompt.class_name for prompt in made] == [name for name in classes for _ in range(count)]
    return [prompt.text for prompt in made]


def test_the_baseline_is_one_plain_prompt_a_class() -> None:
    made = diversify.diversify("single", "token", NAMES, 50)
    assert [prompt.text for prompt in made] == [
        "a photo of a airplane", "a photo of a snow leopard", "a photo of a car",
    ]  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_every_prompt_names_its_class_in_words_of_the_vocabulary(rule: str, teacher: OpenClipTeacher) -> None:
    known = {word for entry in (*DEMO.styles, *DEMO.looks, *DEMO.places) for word in entry.split()}
    known |= {"a", "an", "of", "and"}
    made = texts(rule, teacher, vocabulary=DEMO)
    for name, text in zip([name for name in NAMES for _ in range(12)], made, strict=True):
        said = wording.spoken(name)
        rest, found = re.subn(rf"\b{said}\b", "", text)
        assert found == 1
        assert set(re.findall(r"[\w-]+", rest)) <= known
    for start in range(0, len(made), 12):
        assert len(set(made[start : start + 12])) == 12


@pytest.mark.parametrize("rule", RULES)
def test_a_seed_decides_and_a_class_does_not_depend_on_the_others(
    rule: str, teacher: OpenClipTeacher
) -> None:
    assert texts(rule, teacher, seed=3) == texts(rule, teacher, seed=3)
    assert texts(rule, teacher, seed=3) != texts(rule, teacher, seed=4)
    if rule != "contrastive":  # whose choice is among the classes
        assert texts(rule, teacher, NAMES[1:]) == texts(rule, teacher)[12:]


@pytest.mark.parametrize("vocabulary", [DEMO, GENERAL], ids=["demo", "general"])
@pytest.mark.parametrize("domain", ["sketch", "neon", "painting", "cartoon", "photo"])
def test_no_prompt_says_a_held_out_style(
    domain: str, vocabulary: Vocabulary, teacher: OpenClipTeacher
) -> None:
    words = wording.words_for([domain])
    assert set(STYLE_WORDS[domain]) <= set(words)
    left = vocabulary.without(words)
    assert left.styles and len(left.styles) < len(vocabulary.styles)
    assert left.looks == vocabulary.looks and left.places == vocabulary.places
    for rule in RULES:
        for text in texts(rule, teacher, count=20, vocabulary=left):
            assert not [word for word in words if re.search(rf"\b{word}\b", text)], text


def test_words_are_left_out_whole_and_in_any_case() -> None:
    words = Vocabulary(("art print", "cartoon", "Oil Painting"), ("tartan",), ("by the sea",))
    left = words.without(("art", "oil painting", "", "sea"))
    assert left == Vocabulary(("cartoon",), ("tartan",), ())
    assert words.without(()) == words
    assert wording.words_for(["art_painting"]) == ("art painting",)


def test_mixed_prompts_cross_two_styles(teacher: OpenClipTeacher) -> None:
    for text in texts("mix", teacher, vocabulary=DEMO):
        found = re.fullmatch(r"an? (.+?) and (.+?) of an? .+", text)
        assert found is not None and found[1] != found[2] and {found[1], found[2]} <= set(DEMO.styles)


def test_contrastive_selection_is_the_greedy_choice_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pool = rng.standard_normal((30, 6)) + 2.0 * rows[1]
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)

    def logit(t: np.ndarray, c: int) -> float:
        return 5.0 * sum(float(a) * float(b) for a, b in zip(t, rows[c], strict=True))

    def score(index: int, chosen: list[int]) -> float:
        t = pool[index]
        share = math.exp(logit(t, 1)) / sum(math.exp(logit(t, c)) for c in range(4))
        wrong = max(range(4), key=lambda c: logit(t, c)) != 1
        crowd = sum(math.exp(float(t @ pool[k]) / 0.1) for k in chosen)
        return math.log(share) - (0.1 * math.log(crowd) if chosen else 0.0) - 1e6 * wrong

    expected: list[int] = []
    while len(expected) < 30:
        left = [index for index in range(30) if index not in expected]
        expected.append(max(left, key=lambda index: score(index, expected)))
    assert select_contrastive(pool, rows, 1, 30, 5.0) == expected
    assert any(max(range(4), key=lambda c: logit(pool[k], c)) != 1 for k in expected[-1:])


def test_contrastive_prompts_lie_further_apart_and_stay_with_their_class(teacher: OpenClipTeacher) -> None:
    classes = CLASSES[:6]

    def spread(rule: str) -> tuple[float, float]:
        rows = teacher.embed_texts(texts(rule, teacher, classes, 10, vocabulary=DEMO))
        vectors = class_vectors.compute(teacher, classes, (wording.SINGLE,)).vectors
        right = (rows @ vectors.T).argmax(axis=1) == np.repeat(np.arange(6), 10)
        own = [rows[k : k + 10] @ rows[k : k + 10].T for k in range(0, 60, 10)]
        return float(np.mean([(10 - np.trace(c) + c.sum() - 10) / 90 for c in own])), float(right.mean())

    contrastive, random, mix = spread("contrastive"), spread("random"), spread("mix")
    assert contrastive[0] < min(random[0], mix[0])
    assert contrastive[1] == 1.0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rule": "all"}, "Expected a rule of single, mix, random, contrastive.*found 'all'"),
        ({"space": "word"}, "a space of sentence, token"),
        ({"count": 0}, "0 prompts"),
        ({"classes": ()}, "0 classes"),
        ({"vocabulary": DEMO.without(DEMO.styles)}, "Expected styles, looks and places"),
        ({"rule": "contrastive"}, "Expected a teacher for 'contrastive'"),
        ({"space": "token"}, "Expected a teacher for 'mix' in token space"),
        (
            {"vocabulary": Vocabulary(("photo",), ("red",), ("here",)), "count": 5},
            "words enough for 5 different prompts of 'car', found only 1",
        ),
    ],
    ids=["rule", "space", "count", "classes", "no style left", "no teacher", "no tower", "few words"],
)
def test_what_cannot_be_written_is_refused(changes: dict, match: str) -> None:
    asked = {
        "rule": "mix",
        "space": "sentence",
        "classes": ("car",),
        "count": 3,
        "vocabulary": DEMO,
    } | changes
    positional = [asked.pop(name) for name in ("rule", "space", "classes", "count")]
    with pytest.raises(ConfigError, match=match):
        diversify.diversify(*positional, **asked)
