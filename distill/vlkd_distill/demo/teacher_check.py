"""How well a CLIP names the demo world's classes from words alone, style by style."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch.nn.functional import normalize

from vlkd_runtime.errors import ConfigError

from .render import render
from .scene import CLASSES, STYLES, sample_scene
from .teacher_data import RENDER_SIZE, TRAINING_SEEDS

TEMPLATES: tuple[str, ...] = ("a photo of a {}", "a painting of a {}", "a drawing of a {}", "a {}")


@torch.no_grad()
def zero_shot(folder: Path, *, per_class: int, seed: int = 0, size: int = RENDER_SIZE) -> Mapping[str, float]:
    """Top-1 accuracy per style of the CLIP in `folder` on scenes it was not trained on.

    Args:
        folder: Holds `open_clip_config.json` and the weights.
        per_class: Scenes of each class in each style.
        seed: Which held-out world; below `TRAINING_SEEDS`.
        size: At which size the scenes are rendered before the model's own preprocessing.

    Raises:
        ConfigError: `seed` names a world of the training range.
    """
    if seed >= TRAINING_SEEDS:
        msg = f"Expected a held-out seed below {TRAINING_SEEDS}, found {seed}: those above are for training."
        raise ConfigError(msg)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    classes = class_rows(model, open_clip.get_tokenizer(f"local-dir:{folder}"))
    accuracy: dict[str, float] = {}
    for style in STYLES:
        right = 0
        for label, class_name in enumerate(CLASSES):
            scenes = [sample_scene(seed, style, class_name, index) for index in range(per_class)]
            images = torch.stack([preprocess(render(scene, size)) for scene in scenes])
            found = (normalize(model.encode_image(images), dim=-1) @ classes.T).argmax(dim=-1)
            right += int((found == label).sum())
        accuracy[style] = right / (per_class * len(CLASSES))
    return accuracy


def class_rows(model: Any, tokenizer: Any) -> torch.Tensor:
    """Unit text embeddings of the classes, `TEMPLATES` averaged."""
    rows = []
    for class_name in CLASSES:
        texts = tokenizer([template.format(class_name) for template in TEMPLATES])
        rows.append(normalize(normalize(model.encode_text(texts), dim=-1).mean(dim=0), dim=-1))
    return torch.stack(rows)


def mean(accuracy: Mapping[str, float]) -> float:
    """The mean over styles."""
    return float(np.mean(list(accuracy.values())))
