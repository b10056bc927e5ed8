"""CLIP and SigLIP checkpoints of transformers, and those that optimum has exported, as ONNX pairs.

Letters used in shapes: N images, T texts, D embedding size, L tokens.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.utils
import torch
from PIL import Image
from torch import Tensor

from vlkd_runtime.atomic import atomic_folder
from vlkd_runtime.errors import ConfigError, ParityError, UnavailableError, first_line
from vlkd_runtime.ortimport import import_onnxruntime

from .answers import unit_rows
from .onnx_pair import PairSpec
from .pair_writing import TEXTS, check_pair, odd_images, strip, write_pair
from .quiet import quiet
from .teacher_names import HF_INSTALL, OPTIMUM_GRAPH

# Normalised, on average: a level of 255 is about 0.015; torchvision and Pillow round some pixels apart.
_PIXEL_TOLERANCE = 0.01
_OF_TEXTS = ("input_ids", "attention_mask")
_ANSWERS = ("image_embeds", "text_embeds", "logits_per_image")
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


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
    model, processor, tokenizer = _load(model_id, _with_weights)
    needed = ("get_image_features", "get_text_features", "logit_scale")
    _refuse_others(model_id, model, tokenizer, all(hasattr(model, part) for part in needed))
    model = model.eval().requires_grad_(False)
    spec = _spec(model_id, model.config, processor, tokenizer, float(model.logit_scale.detach().exp()))

    def embed_image(pixels: Tensor) -> Tensor:
        return _pooled(model.get_image_features(pixel_values=pixels))

    def embed_text(ids: Tensor) -> Tensor:
        return _pooled(model.get_text_features(input_ids=ids))

    def reference(images: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.stack([spec.prepare(image) for image in images]))
        return embed_image(pixels), embed_text(torch.from_numpy(_tokens(tokenizer, texts, spec)[0]))

    write_pair(
        folder, spec, model, (embed_image, embed_text), reference, tokenizer.backend_tokenizer.to_str()
    )


def export_optimum(source: Path, folder: Path) -> None:
    """Write a CLIP or SigLIP that optimum has exported, one graph for both towers, as an ONNX pair.

    The graph is cut in two, and the pair is checked against the whole. The factor from cosines to logits is read off
    the graph's own logits.

    Args:
        source: ``model.onnx`` with the outputs ``image_embeds``, ``text_embeds`` and ``logits_per_image``, as
            ``optimum-cli export onnx --task zero-shot-image-classification`` writes it, and the files beside it.
        folder: where the pair shall lie; nothing may be there.

    Raises:
        ConfigError: the graph is another one, or the model prepares images in a way a pair cannot say.
        UnavailableError: transformers is missing, or a file cannot be read.
        ParityError: the pair disagrees with the graph.
    """
    config, processor, tokenizer = _load(str(source), _config_alone)
    parts = hasattr(config, "text_config") and hasattr(config, "vision_config")
    _refuse_others(str(source), config, tokenizer, parts)
    whole = _Whole(source / OPTIMUM_GRAPH)
    spec = _spec(str(source), config, processor, tokenizer, 1.0)

    def answers(images: Sequence[Image.Image], texts: Sequence[str]) -> tuple[npt.NDArray[Any], ...]:
        pixels = np.stack([spec.prepare(image) for image in images])
        return whole.run(pixels, *_tokens(tokenizer, texts, spec))

    def reference(images: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        image, text, _ = map(torch.from_numpy, answers(images, texts))
        return image, text

    scaled = dataclasses.replace(spec, logit_scale=_scale(source, *answers(odd_images(spec), TEXTS)))
    with atomic_folder(folder) as place:
        whole.cut(("pixel_values",), "image_embeds", place / "image.onnx")
        whole.cut(
            tuple(name for name in _OF_TEXTS if name in whole.inputs), "text_embeds", place / "text.onnx"
        )
        (place / "teacher.json").write_text(scaled.to_json(), encoding="utf-8")
        (place / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        check_pair(place, scaled, reference)


class _Whole:
    """The graph of both towers."""

    def __init__(self, path: Path) -> None:
        try:
            self._model = onnx.load(str(path))
            session: Any = import_onnxruntime().InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            msg = f"{path} cannot be read: {first_line(error)}. Export it again, or write an ONNX pair."
            raise UnavailableError(msg) from error
        self._path, self._session = path, session
        self.inputs = tuple(entry.name for entry in session.get_inputs())
        outputs = [entry.name for entry in session.get_outputs()]
        odd = sorted(set(self.inputs) - {"pixel_values", *_OF_TEXTS})
        if odd or not {"pixel_values", "input_ids"} <= set(self.inputs) or not set(_ANSWERS) <= set(outputs):
            msg = (
                f"{path}: expected the inputs pixel_values, input_ids and perhaps attention_mask, and the outputs "
                f"{', '.join(_ANSWERS)}, found {', '.join(self.inputs)} and {', '.join(outputs)}. Export it with "
                "'optimum-cli export onnx --task zero-shot-image-classification', or write an ONNX pair."
            )
            raise ConfigError(msg)

    def run(
        self, pixels: npt.NDArray[Any], ids: npt.NDArray[Any], mask: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], ...]:
        """Embeddings of images ``(N, D)`` and texts ``(T, D)``, and logits ``(N, T)``."""
        fed = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
        return tuple(self._session.run(list(_ANSWERS), {name: fed[name] for name in self.inputs}))

    def cut(self, inputs: Sequence[str], output: str, path: Path) -> None:
        """Write what leads from some inputs to one output."""
        try:
            part = onnx.utils.Extractor(self._model).extract_model(list(inputs), [output])
            onnx.save(part, str(path))
            strip(path)
            onnx.checker.check_model(str(path))
        except Exception as error:
            msg = f"{self._path}: {output} cannot be cut out: {first_line(error)}. Write an ONNX pair of the model."
            raise UnavailableError(msg) from error


def _scale(
    source: Path, images: npt.NDArray[Any], texts: npt.NDArray[Any], logits: npt.NDArray[Any]
) -> float:
    """The factor from cosines to logits, which may have a bias."""
    cosines = (unit_rows(images).astype(np.float64) @ unit_rows(texts).T.astype(np.float64)).ravel()
    found, *_ = np.linalg.lstsq(np.stack([cosines, np.ones_like(cosines)], 1), logits.ravel(), rcond=None)
    scale, bias = map(float, found)
    gap = float(np.abs(scale * cosines + bias - logits.ravel()).max())
    if not (np.ptp(cosines) > 1e-4 and scale > 0 and gap < 1e-3 * max(1.0, scale)):
        msg = (
            f"{source}: expected logits that are cosines times a factor, found a gap of {gap:.3g} to the nearest "
            f"such ({scale:.3g} times the cosine, and {bias:.3g}). Is this a CLIP or SigLIP? Write an ONNX pair of it."
        )
        raise ParityError(msg)
    return scale


def _load(model_id: str, what: Callable[[Any, str], Any]) -> tuple[Any, Any, Any]:
    """What is asked for, the image processor and the tokenizer."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        msg = f"'{model_id}' needs transformers, which is not installed: {HF_INSTALL}."
        raise UnavailableError(msg) from error
    try:
        with quiet():
            found = what(transformers, model_id)
            processor = transformers.AutoImageProcessor.from_pretrained(model_id)
            tokenizer = transformers.AutoTokenizer.from_pretrained(model_id)
    except Exception as error:
        msg = (
            f"The model '{model_id}' cannot be loaded: {first_line(error)}. Expected config.json, *.safetensors, "
            "preprocessor_config.json and the tokenizer's files; a hub name needs a network that reaches the "
            'hub, otherwise download it once and use teacher.model = "hf-dir:<folder>".'
        )
        raise UnavailableError(msg) from error
    return found, processor, tokenizer


def _with_weights(transformers: Any, model_id: str) -> Any:
    # Eager attention is the one that every exporter knows.
    return transformers.AutoModel.from_pretrained(
        model_id, use_safetensors=True, attn_implementation="eager", dtype=torch.float32
    )


def _config_alone(transformers: Any, model_id: str) -> Any:
    return transformers.AutoConfig.from_pretrained(model_id)


def _refuse_others(model_id: str, model: Any, tokenizer: Any, good: bool) -> None:
    if not good or not hasattr(tokenizer, "backend_tokenizer"):
        found = type(model).__name__ if not good else type(tokenizer).__name__
        msg = (
            f"The model '{model_id}': expected a CLIP or SigLIP with a fast tokenizer, found {found}. Use "
            "another model, or write its two towers as an ONNX pair."
        )
        raise ConfigError(msg)


def _spec(model_id: str, config: Any, processor: Any, tokenizer: Any, logit_scale: float) -> PairSpec:
    """How images and texts are prepared, checked against the image processor."""
    pad = tokenizer.pad_token_id
    spec = PairSpec(
        name=Path(model_id).name if Path(model_id).is_dir() else model_id,
        logit_scale=logit_scale,
        tokenizer="tokenizer.json",
        context_length=int(config.text_config.max_position_embeddings),
        pad_id=0 if pad is None else int(pad),
        **_transformers_image(model_id, processor, int(config.vision_config.image_size)),
    )
    _check_pixels(spec, processor)
    return spec


def _tokens(
    tokenizer: Any, texts: Sequence[str], spec: PairSpec
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids and mask ``(T, L)``."""
    found = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=spec.context_length,
        return_attention_mask=True,
        return_tensors="np",
    )
    return found["input_ids"].astype(np.int64), found["attention_mask"].astype(np.int64)


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


def _check_pixels(spec: PairSpec, processor: Any) -> None:
    """Compare a `PairSpec` with the image processor it was read from."""
    for image in odd_images(spec):
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
