"""Prompts in token space: vectors in place of style words, drawn by a rule or learned to differ.

Letters used in shapes: C classes, K prompts per class, S slots for style vectors, V styles of the vocabulary,
E token width, D embedding size.

References:
    Cho et al., "PromptStyler: Prompt-driven Style Generation for Source-free Domain Generalization", ICCV 2023,
    sections 3.1 to 3.3 (style diversity against content consistency), on which `learn_styles` is modelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd_runtime.errors import UnavailableError

from . import class_vectors
from .losses import unit
from .prompting import TextTower
from .synthspecs import Rule
from .teachers import OpenClipTeacher, Teacher
from .wording import SINGLE, Prompt, article, spoken

_SLOTS = 2
_STEPS = 60
_PAIRS = 64
_TAU = 0.1


def token_prompts(
    rule: Rule,
    classes: Sequence[str],
    count: int,
    styles: Sequence[str],
    teacher: Teacher,
    rngs: Sequence[np.random.Generator],
    seed: int,
) -> tuple[Prompt, ...]:
    """Make ``count`` prompts "<style vectors> of a <class>" for each class.

    Style vectors are drawn for each class: ``mix``, a random mixture of the vocabulary's styles; ``random``, one
    of them with noise of the vocabulary's spread. Those of ``contrastive`` are learned once for all classes.

    Args:
        rule: which vectors.
        classes: class names.
        count: K.
        styles: words the vectors start from.
        teacher: whose text tower reads them.
        rngs: one source of randomness per class.
        seed: of what is learned.

    Raises:
        UnavailableError: the teacher's text tower cannot be fed with vectors.
        ConfigError: it is no plain CLIP transformer, or a class name is too long for it.
    """
    tower = tower_of(teacher)
    rows = style_rows(tower, styles)
    learned = None
    if rule == "contrastive":
        class_rows = torch.from_numpy(class_vectors.compute(teacher, classes, (SINGLE,)).vectors.copy())
        learned = learn_styles(tower, class_rows, classes, rows, count, seed, teacher.logit_scale)
    prompts = []
    for name, rng in zip(classes, rngs, strict=True):
        soft = learned if learned is not None else _drawn(rule, rows, count, rng)
        with torch.no_grad():
            targets = encode(tower, [_ending(name)] * count, soft).numpy()
        where = f"{rule}, token space, seed {seed}, draw"
        prompts += [Prompt(name, None, row, f"{where} {k + 1} of {count}") for k, row in enumerate(targets)]
    return tuple(prompts)


def _ending(name: str) -> str:
    return f"of {article(spoken(name))}"


def _drawn(rule: Rule, rows: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Style vectors ``(K, S, E)`` out of the vocabulary's ``(V, S, E)``."""
    if rule == "mix":
        weights = torch.from_numpy(rng.dirichlet(np.full(len(rows), 0.3), count)).float()
        return torch.einsum("kv,vse->kse", weights, rows)
    base = rows[torch.from_numpy(rng.integers(len(rows), size=count))]
    noise = torch.from_numpy(rng.standard_normal(base.shape)).float()
    return base + rows.std(dim=(0, 1)) * noise


def tower_of(teacher: Teacher) -> TextTower:
    """The text tower to feed.

    Raises:
        UnavailableError: the teacher is a black box.
        ConfigError: as `TextTower.of`.
    """
    if not isinstance(teacher, OpenClipTeacher):
        msg = (
            f"Expected for token space an open_clip teacher, whose text tower can be fed with vectors, found "
            f"'{teacher.name}', a {type(teacher).__name__}: set synthesis.space to 'sentence'."
        )
        raise UnavailableError(msg)
    return TextTower.of(teacher)


def style_rows(tower: TextTower, styles: Sequence[str]) -> Tensor:
    """Token vectors of styles, stretched or shortened to the slots: ``(V, S, E)``."""
    weight = tower.owner.token_embedding.weight.detach().float()
    rows = []
    for style in styles:
        tokens = tower.tokenizer.encode(style)
        rows.append(weight[torch.tensor([tokens[slot * len(tokens) // _SLOTS] for slot in range(_SLOTS)])])
    return torch.stack(rows)


def encode(tower: TextTower, endings: Sequence[str], soft: Tensor) -> Tensor:
    """Embed "<style vectors> <ending>" with gradient: soft ``(N, S, E)`` to unit rows ``(N, D)``."""
    return unit(tower.encode(tower.ids(endings, soft.shape[1]), soft[None]))


def learn_styles(
    tower: TextTower,
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
        tower: reads the vectors.
        class_rows: unit rows of the plain prompts ``(C, D)``.
        classes: their names.
        rows: token vectors of the vocabulary's styles ``(V, S, E)``; the starts are drawn around their mean.
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
    endings = [_ending(name) for name in classes]
    for _ in range(_STEPS):
        style = torch.randint(count, (_PAIRS,), generator=rng)
        label = torch.randint(len(classes), (_PAIRS,), generator=rng)
        worded = encode(tower, [endings[k] for k in label.tolist()], soft[style])
        loss = F.cross_entropy(scale * worded @ class_rows.T, label)
        if count > 1:
            loss = loss + crowding(encode(tower, ["of a"] * count, soft), _TAU)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return soft.detach()


def crowding(rows: Tensor, tau: float) -> Tensor:
    """Mean of ``tau * log sum_(j != i) exp(cos(f_i, f_j) / tau)`` over unit rows ``(K, D)``: low where all differ."""
    itself = torch.eye(len(rows), dtype=torch.bool)
    cosines = (rows @ rows.T).masked_fill(itself, -torch.inf)
    return tau * (cosines / tau).logsumexp(dim=1).mean()
