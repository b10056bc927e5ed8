"""Writes teachers down: the two towers of a CLIP-like model as an ONNX pair, or embeddings as a store.

Letters used in shapes: N images, T texts, D embedding size, H and W pixels, L tokens.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from PIL import Image
from torch import Tensor, nn

from vlkd_runtime.atomic import atomic_folder, write_bytes
from vlkd_runtime.errors import ConfigError, DataError, ParityError, UnavailableError, first_line
from vlkd_runtime.tensorfile import write_tensors

from .answers import refuse_not_finite
from .embedding_store import STORE_FORMAT
from .losses import unit
from .onnx_pair import OnnxPairTeacher, PairSpec
from .quiet import quiet
from .teacher_names import HF_INSTALL, check_name, folder_of, form_of, open_clip_names

OPSET = 20
# Of unit rows; float32 on two engines differs by 1e-6, a wrong pixel or token by more than this.
_TOLERANCE = 1e-4
_TEXTS = ("a photo of a cat", "A sketch, of two Dogs!", "x")
# Normalised, on average: a level of 255 is about 0.015; torchvision and Pillow round some pixels apart.
_PIXEL_TOLERANCE = 0.01
# What one protobuf message can hold is 2 GiB; above, the weights go into a file beside the graph.
_LARGEST_BYTES = 2_000_000_000
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


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

    _write_pair(folder, spec, model, (model.encode_image, model.encode_text), reference, None)


def export_transformers(model_id: str, folder: Path) -> None:
    """Write a CLIP or SigLIP of transformers as an ONNX pair, checked against torch.

    SigLIP's bias is left out: it is the same for all classes and changes no softmax.

    Args:
        model_id: a folder, or what the hub knows. Weights are read from safetensors only.
        folder: where the pair shall lie; nothing may be there.

    Raises:
        ConfigError: the model is no CLIP-like one, or prepares images in a way a pair cannot say.
        UnavailableError: transformers or the model cannot be had, or a tower cannot be exported.
        ParityError: the pair disagrees with the model.
    """
    model, processor, tokenizer = _load_transformers(model_id)
    length = int(model.config.text_config.max_position_embeddings)
    pad = tokenizer.pad_token_id
    vision = model.config.vision_config
    spec = PairSpec(
        name=Path(model_id).name if Path(model_id).is_dir() else model_id,
        logit_scale=float(model.logit_scale.detach().exp()),
        tokenizer="tokenizer.json",
        context_length=length,
        pad_id=0 if pad is None else int(pad),
        **_transformers_image(model_id, processor, int(vision.image_size)),
    )
    _check_pixels(spec, processor)

    def embed_image(pixels: Tensor) -> Tensor:
        return _pooled(model.get_image_features(pixel_values=pixels))

    def embed_text(ids: Tensor) -> Tensor:
        return _pooled(model.get_text_features(input_ids=ids))

    def reference(images: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.stack([spec.prepare(image) for image in images]))
        tokens = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return embed_image(pixels), embed_text(tokens["input_ids"])

    _write_pair(
        folder, spec, model, (embed_image, embed_text), reference, tokenizer.backend_tokenizer.to_str()
    )


def _load_transformers(model_id: str) -> tuple[Any, Any, Any]:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        msg = f"'{model_id}' needs transformers, which is not installed: {HF_INSTALL}."
        raise UnavailableError(msg) from error
    try:
        with quiet():
            # Eager attention is the one that every exporter knows.
            model = transformers.AutoModel.from_pretrained(
                model_id, use_safetensors=True, attn_implementation="eager", dtype=torch.float32
            )
            processor = transformers.AutoImageProcessor.from_pretrained(model_id)
            tokenizer = transformers.AutoTokenizer.from_pretrained(model_id)
    except Exception as error:
        msg = (
            f"The model '{model_id}' cannot be loaded: {first_line(error)}. Expected config.json, *.safetensors, "
            "preprocessor_config.json and the tokenizer's files; a hub name needs a network that reaches the "
            'hub, otherwise download it once and use teacher.model = "hf-dir:<folder>".'
        )
        raise UnavailableError(msg) from error
    needed = ("get_image_features", "get_text_features", "logit_scale")
    lacking = [part for part in needed if not hasattr(model, part)]
    if lacking or not hasattr(tokenizer, "backend_tokenizer"):
        found = type(model).__name__ if lacking else type(tokenizer).__name__
        msg = (
            f"The model '{model_id}': expected a CLIP or SigLIP with a fast tokenizer, found {found}. Use "
            "another model, or write its two towers as an ONNX pair."
        )
        raise ConfigError(msg)
    return model.eval().requires_grad_(False), processor, tokenizer


def _transformers_image(model_id: str, processor: Any, side: int) -> dict[str, Any]:
    """The image part of a `PairSpec`, from a transformers image processor."""
    plain = processor.to_dict()
    size, crop = plain.get("size") or {}, plain.get("crop_size") or {}
    shortest = size.get("shortest_edge")
    height, width = size.get("height", side), size.get("width", side)
    if shortest is not None:
        crops = bool(plain.get("do_center_crop"))
        height, width = (crop.get("height"), crop.get("width")) if crops else (None, None)
    steps = [plain.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize")]
    cropped = bool(plain.get("do_center_crop")) and (height, width) != (crop.get("height"), crop.get("width"))
    usual = abs(plain.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
    interpolation = _INTERPOLATIONS.get(int(plain.get("resample", 3)))
    if not all(steps) or not usual or cropped or None in (height, width, interpolation):
        shown = {
            key: value
            for key, value in plain.items()
            if key.startswith(("do_", "size", "crop", "resa", "resc"))
        }
        msg = (
            f"The model '{model_id}' prepares images in a way that a pair's teacher.json cannot say: {shown}."
        )
        raise ConfigError(msg)
    return {
        "height": height,
        "width": width,
        "shortest": shortest,
        "crop_rounding": "down",
        "interpolation": interpolation,
        "mean": tuple(plain["image_mean"]),
        "std": tuple(plain["image_std"]),
    }


def _pooled(output: Any) -> Tensor:
    """The embedding; transformers 5 wraps it, 4 gave it bare."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


class _Tower(nn.Module):
    """One encoder of a model as a module of its own, with unit rows."""

    def __init__(self, model: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._encode = encode

    def forward(self, batch: Tensor) -> Tensor:
        """Embed ``(N, ...)``: unit rows ``(N, D)``."""
        return unit(self._encode(batch))


def _write_pair(
    folder: Path,
    spec: PairSpec,
    model: nn.Module,
    encoders: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    reference: Callable[[Sequence[Image.Image], Sequence[str]], tuple[Tensor, Tensor]],
    tokenizer: str | None,
) -> None:
    examples = (
        torch.zeros(2, 3, spec.height, spec.width),
        torch.ones(2, spec.context_length, dtype=torch.int64),
    )
    with atomic_folder(folder) as place:
        for name, encode, example in zip(("image", "text"), encoders, examples, strict=True):
            _export(_Tower(model, encode).eval(), example, place / f"{name}.onnx", spec.name)
        (place / "teacher.json").write_text(spec.to_json(), encoding="utf-8")
        if tokenizer is not None:
            (place / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        _check(place, spec, reference)


def _export(tower: nn.Module, example: Tensor, path: Path, name: str) -> None:
    """Write one tower with a free number of rows."""
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                tower,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["batch"],
                # Not "embedding": SigLIP has a value of that name inside, and onnxscript does not rename it.
                output_names=["teacher_embedding"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
    except Exception as error:
        msg = (
            f"The {path.stem} tower of '{name}' cannot be exported to ONNX: {first_line(error)}. Export it by "
            'other means and use teacher.model = "onnx-pair:<folder>".'
        )
        raise UnavailableError(msg) from error
    assert program is not None
    weights = sum(value.numel() * value.element_size() for value in tower.state_dict().values())
    program.save(str(path), external_data=weights > _LARGEST_BYTES)
    _strip(path)
    onnx.checker.check_model(str(path))


def _strip(path: Path) -> None:
    """Drop the traces of this machine's files: the same model gives the same graph and fingerprint."""
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def _check(
    folder: Path,
    spec: PairSpec,
    reference: Callable[[Sequence[Image.Image], Sequence[str]], tuple[Tensor, Tensor]],
) -> None:
    """Compare the pair with the model, through preprocessing and tokens, on images of odd sizes."""
    images = _odd_images(spec)
    pair = OnnxPairTeacher(spec.name, folder)
    with torch.inference_mode():
        expected = [unit(rows).numpy() for rows in reference(images, _TEXTS)]
    found = (pair.embed_images(images), pair.embed_texts(_TEXTS))
    for kind, mine, theirs in zip(("image", "text"), found, expected, strict=True):
        gap = float(np.abs(mine - theirs).max())
        if not gap <= _TOLERANCE:
            msg = (
                f"The exported {kind} tower of '{spec.name}' gives other embeddings than the model: they differ by "
                f"{gap:.3g}, tolerated is {_TOLERANCE:g}. Its preprocessing, tokenizer or graph was not written "
                "down rightly: report it with the model's name."
            )
            raise ParityError(msg)


def _check_pixels(spec: PairSpec, processor: Any) -> None:
    """Compare a `PairSpec` with the image processor it was read from."""
    for image in _odd_images(spec):
        with quiet():
            theirs = np.asarray(processor(images=image, return_tensors="np")["pixel_values"])[0]
        mine = spec.prepare(image)
        gap = float(np.abs(mine - theirs).mean()) if mine.shape == theirs.shape else float("inf")
        if not gap <= _PIXEL_TOLERANCE:
            msg = (
                f"The model '{spec.name}' prepares an image to {theirs.shape}, its teacher.json to {mine.shape}, and "
                f"they differ by {gap:.3g} on average, tolerated is {_PIXEL_TOLERANCE:g}. Its image processor does "
                "more than resize, crop and normalise: write the ONNX pair by other means."
            )
            raise ParityError(msg)


def _odd_images(spec: PairSpec) -> tuple[Image.Image, ...]:
    """Smooth noise, wide and tall, with odd margins: a crop that starts one pixel off shows."""
    rng = np.random.default_rng(0)
    sizes = ((spec.width * 2 + 31, spec.height + 6), (spec.width + 3, spec.height * 2 + 9))
    return tuple(
        Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize(size) for size in sizes
    )
