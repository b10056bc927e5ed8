"""Prompts for images that nobody took: one plain prompt per class, or many diversified by one of three rules.

Inspired by Xuan et al. What their abstract states: the student is distilled on images synthesised from category
names alone; prompts that vary in style make it generalise; Mix-Prompt, Random-Prompt and Contrastive-Prompt are
three ways to vary them, the last being best. It states no formula. The rules below are our reading of those
names, and none of their settings is the paper's.

Each rule works in sentence space, on words, or in token space, on the vectors that the teacher's text tower
reads in place of words: then a prompt is an embedding, which a synthesiser that reads text cannot use.

Letters used in shapes: C classes, K prompts per class, S slots for style vectors, E token width, D embedding
size, P candidates, N texts.

References:
    Xuan et al., "Distilling Vision-Language Foundation Models: A Data-Free Approach via Prompt
    Diversification", arXiv 2407.15155 (the problem and the rules' names).
    Cho et al., "PromptStyler: Prompt-driven Style Generation for Source-free Domain Generalization", ICCV 2023
    (style diversity against content consistency, on which our token-space Contrastive-Prompt is modelled).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd_runtime.errors import ConfigError, UnavailableError

from . import class_vectors
from .losses import unit
from .teachers import FloatArray, OpenClipTeacher, Teacher

Rule = Literal["single", "mix", "random", "contrastive"]
Space = Literal["sentence", "token"]

SINGLE = "a photo of a {}"
_SLOTS = 2
_SLOT = "x"  # stands where a style vector goes; its own meaning is never read
_STEPS = 60
_PAIRS = 64
_TAU = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What one synthetic image is asked to show; it has a text, a target, or both.

    Attributes:
        class_name: the class, as the data set spells it.
        text: a sentence; None in token space, where no words say it.
        target: unit text embedding of one teacher ``(D,)``; None where the text alone says it.
        provenance: rule, space and what was drawn, for the record.
    """

    class_name: str
    text: str | None
    target: FloatArray | None
    provenance: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that prompts are made of.

    Attributes:
        styles: what kind of picture, as in "a <style> of a".
        looks: in front of the class name, as in "a <look> car".
        places: after it, as in "a car <place>".
    """

    styles: tuple[str, ...]
    looks: tuple[str, ...]
    places: tuple[str, ...]

    def without(self, words: Sequence[str]) -> Vocabulary:
        """Leave out every entry that contains one of the words: what names a held-out domain gives it away."""

        def kept(entries: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(e for e in entries if not any(word.lower() in e.lower() for word in words))

        return replace(self, styles=kept(self.styles), looks=kept(self.looks), places=kept(self.places))


_LOOKS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "white",
    "grey",
    "small",
    "large",
)
_PLACES = (
    "in a meadow",
    "by the sea",
    "in the sky",
    "on a street",
    "in a room",
    "in a forest",
    "in the snow",
)
GENERAL = Vocabulary(
    styles=(
        *("photo", "snapshot", "close-up photo", "blurry photo", "black and white photo", "film still"),
        *("painting", "oil painting", "watercolour", "fresco", "gouache painting", "stained glass window"),
        *("cartoon", "comic", "clip art", "anime drawing", "vector illustration", "poster", "pixel art"),
        *("sketch", "pencil drawing", "charcoal drawing", "ink drawing", "woodcut", "line drawing", "doodle"),
        *(
            "3d rendering",
            "clay figure",
            "embroidery",
            "mosaic",
            "origami",
            "graffiti",
            "neon sign",
            "tattoo",
        ),
    ),
    looks=_LOOKS,
    places=(*_PLACES, "at night", "at dusk", "in fog", "on a plain background", "seen from above"),
)
"""For teachers trained on the web."""
DEMO = Vocabulary(
    styles=(
        *("photo", "snapshot", "painting", "oil painting", "cartoon", "clip art"),
        *("sketch", "pencil drawing", "neon sign", "neon light"),
    ),
    looks=_LOOKS,
    places=(*_PLACES, "on a plain background"),
)
"""Words that the demo world's teacher and renderer know."""


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
        return tuple(Prompt(name, SINGLE.format(_words(name)), None, "single") for name in classes)
    if not (vocabulary.styles and vocabulary.looks and vocabulary.places):
        msg = (
            f"Expected styles, looks and places to draw prompts from, found {vocabulary}: give some of each."
        )
        raise ConfigError(msg)
    if teacher is None and (rule == "contrastive" or space == "token"):
        msg = f"Expected a teacher for {rule!r} in {space} space, found none: name one, or use a sentence-space mix."
        raise ConfigError(msg)
    if space == "token":
        return _token_prompts(rule, classes, count, seed, vocabulary, teacher)
    if rule == "contrastive" and teacher is not None:
        return _contrastive_sentences(classes, count, seed, vocabulary, teacher)
    draw = _mixed_sentence if rule == "mix" else _random_sentence
    return tuple(
        Prompt(name, text, None, f"{rule}, sentence space, seed {seed}")
        for name in classes
        for text in _distinct(draw, name, count, seed, vocabulary)
    )


# Sentence space


def _words(name: str) -> str:
    return name.replace("_", " ")


def _article(words: str) -> str:
    return f"{'an' if words[:1].lower() in tuple('aeiou') else 'a'} {words}"


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _class_rng(seed: int, name: str) -> np.random.Generator:
    """A class's own draws: they do not change when another class is added."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


_Draw = Callable[[str, Vocabulary, np.random.Generator], str]


def _distinct(draw: _Draw, name: str, count: int, seed: int, vocabulary: Vocabulary) -> list[str]:
    rng, found = _class_rng(seed, name), dict[str, None]()
    for _ in range(50 * count):
        found[draw(_words(name), vocabulary, rng)] = None
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
    thing = _article(f"{_pick(rng, vocabulary.looks)} {name}" if with_look else name)
    place = f" {_pick(rng, vocabulary.places)}" if with_place else ""
    return f"{_article(_pick(rng, vocabulary.styles))} of {thing}{place}"


def _mixed_sentence(name: str, vocabulary: Vocabulary, rng: np.random.Generator) -> str:
    """Two prompts crossed: the styles of both, the look of one, the place of the other."""
    first = _pick(rng, vocabulary.styles)
    second = _pick(rng, [style for style in vocabulary.styles if style != first] or [first])
    thing = _article(f"{_pick(rng, vocabulary.looks)} {name}")
    return f"{_article(first)} and {second} of {thing} {_pick(rng, vocabulary.places)}"


def _random_sentence(name: str, vocabulary: Vocabulary, rng: np.random.Generator) -> str:
    """The class among two to four entries of the vocabulary, with no regard to grammar."""
    entries = (*vocabulary.styles, *vocabulary.looks, *vocabulary.places)
    drawn = [_pick(rng, entries) for _ in range(int(rng.integers(2, 5)))]
    at = int(rng.integers(len(drawn) + 1))
    return ", ".join([*drawn[:at], _article(name), *drawn[at:]])


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


# Token space


class SoftText:
    """A white-box teacher's text tower, fed with vectors in place of the style words."""

    def __init__(self, teacher: Teacher) -> None:
        network: Any = getattr(teacher, "_model", None)
        tower = getattr(network, "text", network)
        if not (
            isinstance(teacher, OpenClipTeacher)
            and hasattr(tower, "token_embedding")
            and hasattr(teacher._tokenizer, "encode")
        ):
            msg = (
                f"Expected for token space an open_clip teacher with open_clip's own text tower, found "
                f"'{teacher.name}', whose tower cannot be fed with vectors: use the sentence space."
            )
            raise UnavailableError(msg)
        self._network, self._tokenizer = network, teacher._tokenizer
        self._embedding: torch.nn.Embedding = tower.token_embedding
        self._slot: int = self._tokenizer.encode(_SLOT)[0]

    def style_rows(self, styles: Sequence[str]) -> Tensor:
        """Token vectors of styles, stretched or shortened to the slots: ``(len(styles), S, E)``."""
        rows = []
        for style in styles:
            tokens = self._tokenizer.encode(style)
            picked = [tokens[slot * len(tokens) // _SLOTS] for slot in range(_SLOTS)]
            rows.append(self._embedding.weight[torch.tensor(picked)])
        return torch.stack(rows).detach().float()

    def encode(self, rests: Sequence[str], soft: Tensor) -> Tensor:
        """Embed "<style vectors> <rest>" with gradient: soft ``(N, S, E)`` to unit rows ``(N, D)``."""
        tokens = self._tokenizer([f"{' '.join([_SLOT] * _SLOTS)} {rest}" for rest in rests])
        is_slot = (tokens == self._slot) & ((tokens == self._slot).cumsum(dim=1) <= _SLOTS)

        def feed(_: Any, __: Any, output: Tensor) -> Tensor:
            return output.masked_scatter(is_slot.unsqueeze(-1), soft.to(output.dtype))

        handle = self._embedding.register_forward_hook(feed)
        try:
            return unit(self._network.encode_text(tokens))
        finally:
            handle.remove()


def _token_prompts(
    rule: Rule,
    classes: Sequence[str],
    count: int,
    seed: int,
    vocabulary: Vocabulary,
    teacher: Any,
) -> tuple[Prompt, ...]:
    text = SoftText(teacher)
    rows = text.style_rows(vocabulary.styles)
    shared = None
    if rule == "contrastive":
        class_rows = torch.from_numpy(class_vectors.compute(teacher, classes, (SINGLE,)).vectors)
        shared = learn_styles(text, class_rows, classes, rows, count, seed, teacher.logit_scale)
    prompts = []
    for name in classes:
        rng = _class_rng(seed, name)
        if shared is not None:
            soft = shared
        elif rule == "mix":
            weights = rng.dirichlet(np.full(len(rows), 0.3), count)
            soft = torch.einsum("kv,vse->kse", torch.from_numpy(weights).float(), rows)
        else:
            base = rows[torch.from_numpy(rng.integers(len(rows), size=count))]
            noise = torch.from_numpy(rng.standard_normal(base.shape)).float()
            soft = base + rows.std(dim=(0, 1)) * noise
        with torch.no_grad():
            targets = text.encode([f"of {_article(_words(name))}"] * count, soft).numpy()
        where = f"{rule}, token space, seed {seed}, draw"
        prompts += [Prompt(name, None, row, f"{where} {k + 1} of {count}") for k, row in enumerate(targets)]
    return tuple(prompts)


def learn_styles(
    text: SoftText,
    class_rows: Tensor,
    classes: Sequence[str],
    rows: Tensor,
    count: int,
    seed: int,
    scale: float,
) -> Tensor:
    """Learn style vectors that differ from each other and leave every class what it is.

    Minimises, over all styles at once (PromptStyler learns them one after the other), the mean of
    ``tau * log sum_j exp(cos(f_i, f_j) / tau)`` for f_i the embedding of "<style i> of a", plus the
    cross-entropy of "<style i> of a <class>" among the classes' plain prompts.

    Args:
        text: the tower.
        class_rows: unit rows of the plain prompts ``(C, D)``.
        classes: their names.
        rows: token vectors of the vocabulary's styles; the starts are drawn around their mean.
        count: K, how many to learn.
        seed: of starts and batches.
        scale: from cosines to logits.

    Returns:
        Style vectors ``(K, S, E)``.
    """
    rng = torch.Generator().manual_seed(seed)
    spread = rows.std(dim=(0, 1))
    start = rows.mean(dim=(0, 1)) + spread * torch.randn(count, *rows.shape[1:], generator=rng)
    soft = start.requires_grad_()
    optimizer = torch.optim.Adam([soft], lr=float(spread.mean()) / 10)
    itself = torch.eye(count, dtype=torch.bool)
    for _ in range(_STEPS):
        features = text.encode(["of a"] * count, soft)
        cosines = (features @ features.T).masked_fill(itself, -torch.inf)
        style = torch.randint(count, (_PAIRS,), generator=rng)
        label = torch.randint(len(classes), (_PAIRS,), generator=rng)
        worded = text.encode([f"of {_article(_words(classes[k]))}" for k in label.tolist()], soft[style])
        loss = F.cross_entropy(scale * worded @ class_rows.T, label)
        if count > 1:
            loss = loss + _TAU * (cosines / _TAU).logsumexp(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return soft.detach()
