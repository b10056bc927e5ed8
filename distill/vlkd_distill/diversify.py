"""Prompts for images that nobody took: one plain prompt per class, or many diversified by one of three rules.

Inspired by Xuan et al. What their abstract states: the student is distilled on images synthesised from category
names alone; prompts that vary in style make it generalise; Mix-Prompt, Random-Prompt and Contrastive-Prompt are
three ways to vary them, the last being best. It states no formula. The rules below are our reading of those
names, and none of their settings is the paper's.

Each rule works in sentence space, on words, or in token space, on the vectors that the teacher's text tower
reads in place of words (`soft_prompts`): then a prompt is an embedding, which a synthesiser that reads text
cannot use.

Letters used in shapes: C classes, D embedding size, P candidates.

References:
    Xuan et al., "Distilling Vision-Language Foundation Models: A Data-Free Approach via Prompt
    Diversification", arXiv 2407.15155 (the problem and the rules' names).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from vlkd_runtime.errors import ConfigError

from . import class_vectors
from .synthspecs import Rule, Space
from .teachers import FloatArray, Teacher
from .wording import GENERAL, SINGLE, Prompt, Vocabulary, article, spoken

_TAU = 0.1


def diversify(
    rule: Rule,
    space: Space,
    classes: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    vocabulary: Vocabulary = GENERAL,
    teacher: Teacher | None = None,
) -> tuple[Prompt, ...]:
    """Make prompts for every class, grouped by class in the order given.

    Args:
        rule: `single` (the baseline: one plain prompt a class, whatever `count` and `space`) or a
            diversification.
        space: where the rule works.
        classes: class names; underscores become spaces in sentences.
        count: K, prompts per class.
        seed: of every draw.
        vocabulary: the words to draw from.
        teacher: needed by `contrastive`; token space needs one whose text tower can be read.

    Raises:
        ConfigError: an unknown rule or space, no class, no prompt, no teacher, or too few words.
        UnavailableError: token space, and the teacher's text tower cannot be fed with vectors.
    """
    if rule not in get_args(Rule) or space not in get_args(Space) or count < 1 or not classes:
        msg = (
            f"Expected a rule of {', '.join(get_args(Rule))}, a space of {', '.join(get_args(Space))}, at least one "
            f"class and one prompt a class; found {rule!r}, {space!r}, {len(classes)} classes and {count} prompts."
        )
        raise ConfigError(msg)
    if rule == "single":
        return tuple(Prompt(name, SINGLE.format(spoken(name)), None, "single") for name in classes)
    if not (vocabulary.styles and vocabulary.looks and vocabulary.places):
        msg = (
            f"Expected styles, looks and places to draw prompts from, found {vocabulary}: give some of each."
        )
        raise ConfigError(msg)
    if teacher is None and (rule == "contrastive" or space == "token"):
        msg = f"Expected a teacher for {rule!r} in {space} space, found none: name one, or use a sentence-space mix."
        raise ConfigError(msg)
    if space == "token" and teacher is not None:
        from .soft_prompts import token_prompts

        rngs = [_class_rng(seed, name) for name in classes]
        return token_prompts(rule, classes, count, vocabulary.styles, teacher, rngs, seed)
    if rule == "contrastive" and teacher is not None:
        return _contrastive_sentences(classes, count, seed, vocabulary, teacher)
    draw = _mixed_sentence if rule == "mix" else _random_sentence
    return tuple(
        Prompt(name, text, None, f"{rule}, sentence space, seed {seed}")
        for name in classes
        for text in _distinct(draw, name, count, seed, vocabulary)
    )


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _class_rng(seed: int, name: str) -> np.random.Generator:
    """A class's own draws: they do not change when another class is added."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


_Draw = Callable[[str, Vocabulary, np.random.Generator], str]


def _distinct(draw: _Draw, name: str, count: int, seed: int, vocabulary: Vocabulary) -> list[str]:
    rng, found = _class_rng(seed, name), dict[str, None]()
    for _ in range(50 * count):
        found[draw(spoken(name), vocabulary, rng)] = None
        if len(found) == count:
            return list(found)
    msg = (
        f"Expected words enough for {count} different prompts of '{name}', found only {len(found)}: ask for "
        "fewer prompts or give a larger vocabulary."
    )
    raise ConfigError(msg)


def _composed_sentence(name: str, vocabulary: Vocabulary, rng: np.random.Generator) -> str:
    """A style, mostly a look and mostly a place."""
    with_look, with_place = rng.random(2) < 0.75
    thing = article(f"{_pick(rng, vocabulary.looks)} {name}" if with_look else name)
    place = f" {_pick(rng, vocabulary.places)}" if with_place else ""
    return f"{article(_pick(rng, vocabulary.styles))} of {thing}{place}"


def _mixed_sentence(name: str, vocabulary: Vocabulary, rng: np.random.Generator) -> str:
    """Two prompts crossed: the styles of both, the look of one, the place of the other."""
    first = _pick(rng, vocabulary.styles)
    second = _pick(rng, [style for style in vocabulary.styles if style != first] or [first])
    thing = article(f"{_pick(rng, vocabulary.looks)} {name}")
    return f"{article(first)} and {second} of {thing} {_pick(rng, vocabulary.places)}"


def _random_sentence(name: str, vocabulary: Vocabulary, rng: np.random.Generator) -> str:
    """The class among two to four entries of the vocabulary, with no regard to grammar."""
    entries = (*vocabulary.styles, *vocabulary.looks, *vocabulary.places)
    drawn = [_pick(rng, entries) for _ in range(int(rng.integers(2, 5)))]
    at = int(rng.integers(len(drawn) + 1))
    return ", ".join([*drawn[:at], article(name), *drawn[at:]])


def _contrastive_sentences(
    classes: Sequence[str], count: int, seed: int, vocabulary: Vocabulary, teacher: Teacher
) -> tuple[Prompt, ...]:
    rows = class_vectors.compute(teacher, classes, (SINGLE,)).vectors
    prompts = []
    for label, name in enumerate(classes):
        # A small vocabulary may not hold as many candidates as would be best.
        most = (len(vocabulary.looks) + 1) * (len(vocabulary.places) + 1) * len(vocabulary.styles)
        pool = _distinct(
            _composed_sentence, name, max(count, min(64 + 4 * count, most // 4)), seed, vocabulary
        )
        embeddings = teacher.embed_texts(pool)
        chosen = select_contrastive(embeddings, rows, label, count, teacher.logit_scale)
        where = f"contrastive, sentence space, {len(pool)} candidates, seed {seed}"
        prompts += [Prompt(name, pool[k], embeddings[k], where) for k in chosen]
    return tuple(prompts)


def select_contrastive(
    candidates: FloatArray, class_rows: FloatArray, label: int, count: int, scale: float
) -> list[int]:
    """Choose prompts one by one: each far from those chosen before, all of their class.

    The next one maximises ``log p(class | t) - tau * log sum_j exp(cos(t, t_j) / tau)`` over the chosen t_j,
    which is a contrastive loss with the class as positive and earlier prompts as negatives (ours). Candidates
    that the teacher takes for another class come last.

    Args:
        candidates: unit rows ``(P, D)``.
        class_rows: unit rows ``(C, D)``.
        label: the class.
        count: how many to choose.
        scale: from cosines to logits.

    Returns:
        Indices in the order they were chosen.
    """
    logits = scale * candidates.astype(np.float64) @ class_rows.astype(np.float64).T
    consistency = logits[:, label] - np.logaddexp.reduce(logits, axis=1)
    cosines = candidates.astype(np.float64) @ candidates.astype(np.float64).T
    wrong = logits.argmax(axis=1) != label
    chosen: list[int] = []
    crowd: npt.NDArray[np.float64] = np.full(len(candidates), -np.inf)
    while len(chosen) < count:
        score = consistency - (_TAU * crowd if chosen else 0.0)
        score[wrong] -= 1e6
        score[chosen] = -np.inf
        chosen.append(int(score.argmax()))
        crowd = np.logaddexp(crowd, cosines[:, chosen[-1]] / _TAU)
    return chosen
