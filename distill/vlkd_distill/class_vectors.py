"""Class vectors: the teacher's words for the classes, embedded once and stored.

Letters used in shapes: C classes, T templates, D embedding size.

References:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
    section 3.1.4 (prompt ensembling in embedding space).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlkd_runtime.vectors import ClassVectors

from .teachers import Teacher


def compute(teacher: Teacher, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
    """Embed the classes: per class, unit rows of its prompts, their mean, unit again.

    Args:
        teacher: whose text encoder speaks.
        names: class names in label order; underscores become spaces in the prompts.
        templates: texts with one ``{}`` each.

    Returns:
        Unit rows ``(C, D)`` with everything needed to compute them again.
    """
    prompts = tuple(
        tuple(template.replace("{}", name.replace("_", " ")) for template in templates) for name in names
    )
    rows = []
    for texts in prompts:
        mean = teacher.embed_texts(texts).astype(np.float64).mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return ClassVectors(
        names=tuple(names),
        vectors=np.asarray(rows, dtype=np.float32),
        prompts=prompts,
        templates=tuple(templates),
        teacher=teacher.name,
        teacher_fingerprint=teacher.fingerprint,
        logit_scale=teacher.logit_scale,
    )
