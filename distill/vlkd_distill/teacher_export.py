"""Writes teachers down: the two towers of an open_clip model as an ONNX pair, or embeddings as a store.

Letters used in shapes: N images, T texts, D embedding size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError, first_line
from vlkd_runtime.tensorfile import write_tensors

from .answers import refuse_not_finite
from .embedding_store import STORE_FORMAT
from .onnx_pair import PairSpec
from .pair_writing import write_pair
from .quiet import quiet
from .teacher_names import check_name, folder_of, form_of, open_clip_names


def write_store(
    path: Path,
    *,
    name: str,
    logit_scale: float,
    images: Sequence[Path],
    image_rows: npt.NDArray[Any],
    texts: Sequence[str],
    text_rows: npt.NDArray[Any],
) -> None:
    """Write embeddings computed elsewhere as a store, for ``teacher.model = "store:<path>"``.

    Args:
        path: the file to write, ending in ``.safetensors``; several in one folder make one store.
        name: which model embedded them; the same in all files of a store.
        logit_scale: its factor from cosines to logits.
        images: the image files of the rows; they are found again by their content, wherever they lie.
        image_rows: ``(N, D)``, of any length.
        texts: what was embedded, letter by letter: class names put into templates.
        text_rows: ``(T, D)``, of any length.

    Raises:
        DataError: the numbers of rows and names or the sizes differ, a row is not finite or zero, or an
            image or text is there twice with different embeddings.
    """
    image_rows, text_rows = (np.asarray(rows, np.float32) for rows in (image_rows, text_rows))
    shapes = (image_rows.shape, text_rows.shape)
    size = text_rows.shape[1] if text_rows.ndim == 2 else image_rows.shape[-1]
    if shapes != ((len(images), size), (len(texts), size)) or size == 0:
        msg = (
            f"{path}: expected rows ({len(images)}, D) for the images and ({len(texts)}, D) for the texts, found "
            f"{shapes[0]} and {shapes[1]}; give one row each, all of one size"
        )
        raise DataError(msg)
    if not (np.isfinite(logit_scale) and logit_scale > 0):
        msg = f"{path}: expected a finite logit_scale above 0, found {logit_scale}; take the model's"
        raise DataError(msg)
    for rows, kind, names in ((image_rows, "image", images), (text_rows, "text", texts)):
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        refuse_not_finite(np.where(lengths == 0, np.nan, rows).astype(np.float32), str(path), kind, names)
    digests = b"".join(hashlib.sha256(Path(image).read_bytes()).digest() for image in images)
    tensors: dict[str, npt.NDArray[Any]] = {
        "image": image_rows,
        "image_sha256": np.frombuffer(digests, np.uint8).reshape(len(images), 32),
        "text": text_rows,
    }
    metadata = {
        "format": STORE_FORMAT,
        "name": name,
        "logit_scale": repr(float(logit_scale)),
        "texts": json.dumps(list(texts)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, write_tensors(tensors, metadata))


def write_onnx_pair(name: str, folder: Path) -> None:
    """Write an open_clip teacher as an ONNX pair, checked against torch.

    Args:
        name: ``demo``, ``local-dir:<folder>`` or ``<architecture>:<pretrained tag>``.
        folder: where the pair shall lie; nothing may be there.

    Raises:
        ConfigError: the name has another form, or the model prepares images in a way a pair cannot say.
        UnavailableError: the weights cannot be had, or a tower cannot be exported.
        ParityError: the pair disagrees with the model.
    """
    check_name(name)
    if form_of(name) not in ("demo", "local-dir", "open-clip"):
        msg = f"Expected an open_clip teacher to export, found '{name}'; only those have towers here."
        raise ConfigError(msg)
    architecture, tag = open_clip_names(name)
    import open_clip

    try:
        with quiet():
            model, preprocess = open_clip.create_model_from_pretrained(
                architecture, pretrained=tag, weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:
        msg = f"The teacher '{name}' cannot be loaded: {first_line(error)}."
        raise UnavailableError(msg) from error
    model.eval().requires_grad_(False)
    cfg = model.visual.preprocess_cfg
    size = cfg["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = cfg["resize_mode"]
    if mode not in ("squash", "shortest") or (mode == "shortest" and height != width):
        msg = f"The teacher '{name}' resizes by '{mode}' to {height}x{width}, which a pair's teacher.json cannot say."
        raise ConfigError(msg)
    plain = isinstance(tokenizer, open_clip.SimpleTokenizer)
    local = folder_of(name)
    spec = PairSpec(
        name=local.name if form_of(name) == "local-dir" and local is not None else name,
        logit_scale=float(model.logit_scale.exp()),
        height=height,
        width=width,
        shortest=height if mode == "shortest" else None,
        crop_rounding="nearest",
        interpolation=cfg["interpolation"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        tokenizer="clip-bpe" if plain else f"open_clip:{architecture}",
        context_length=tokenizer.context_length,
        pad_id=0,
    )

    def reference(images: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        pixels = torch.stack([preprocess(image) for image in images])
        return model.encode_image(pixels), model.encode_text(tokenizer(list(texts)))

    write_pair(folder, spec, model, (model.encode_image, model.encode_text), reference, None)
