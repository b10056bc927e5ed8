"""The demo teacher's network and its files: a tiny CLIP of open_clip's own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save

from vlkd_runtime.atomic import write_bytes, write_text

CONFIG: Mapping[str, Mapping[str, Any]] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "timm_model_name": "regnetx_002",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    },
}
"""open_clip's configuration file; a CLIP text tower, a small RegNet (https://arxiv.org/abs/2003.13678)."""

CONFIG_NAME, WEIGHTS_NAME = "open_clip_config.json", "open_clip_model.safetensors"
IMAGE_SIZE = 64


def new_model(folder: Path) -> Any:
    """Write the configuration into the folder and build the network from it, weights random."""
    write_text(folder / CONFIG_NAME, json.dumps(CONFIG, indent=1) + "\n")
    return open_clip.create_model(f"local-dir:{folder}", load_weights=False)


def save_model(folder: Path, state: Mapping[str, torch.Tensor], used_tokens: torch.Tensor) -> Path:
    """Write weights in half precision, token embeddings that no caption used set to zero.

    Args:
        folder: Where the configuration already lies.
        state: The network's state.
        used_tokens: (V,) bool, which rows of the vocabulary training has touched.
    """
    half = {}
    for name, tensor in state.items():
        kept = tensor.clone()
        if name == "token_embedding.weight":
            kept[~used_tokens] = 0
        half[name] = (kept.half() if kept.is_floating_point() else kept).contiguous()
    path = folder / WEIGHTS_NAME
    write_bytes(path, save(half, metadata={"format": "pt"}))
    return path
