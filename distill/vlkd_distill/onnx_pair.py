"""A CLIP-like teacher as two ONNX graphs, run by onnxruntime.

A pair's ``teacher.json``::

    {"format": "vlkd-onnx-pair/1", "name": "...", "logit_scale": 100.0,
     "image": {"height": 224, "width": 224, "shortest": 224, "crop_rounding": "nearest",
               "interpolation": "bicubic", "mean": [...], "std": [...]},
     "text": {"tokenizer": "clip-bpe", "context_length": 77, "pad_id": 0}}

``shortest`` is the length that the shorter side is resized to before the centre is cropped, null to squash
to height and width. ``tokenizer`` is ``clip-bpe`` (CLIP's own), ``open_clip:<architecture>``, or
``tokenizer.json``, a file beside it that the ``tokenizers`` package reads. ``image.onnx`` takes float32
``(N, 3, H, W)``, normalised; ``text.onnx`` takes integer token ids ``(N, L)`` and, if it wants, a second
input named ``attention_mask``. Each gives ``(N, D)``, of any length; a fixed N is respected.

Letters used in shapes: N images or texts, D embedding size, H and W pixels, L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlkd_runtime.errors import ConfigError, UnavailableError, first_line
from vlkd_runtime.ortimport import import_onnxruntime
from vlkd_runtime.strictjson import Fields, JsonProblems, parse

from .answers import FloatArray, refuse_not_finite, unit_rows
from .quiet import quiet
from .teacher_names import HF_INSTALL, check_name, teacher_key

Tokenize = Callable[[Sequence[str]], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]

PAIR_FORMAT = "vlkd-onnx-pair/1"
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BATCH = 32


@dataclass(frozen=True, slots=True)
class PairSpec:
    """What ``teacher.json`` says.

    Attributes:
        name: how the teacher is called in records.
        logit_scale: factor from cosines to logits.
        height: rows of the image tower's input, in pixels.
        width: its columns.
        shortest: length of the shorter side before the centre crop, in pixels; None squashes.
        crop_rounding: which pixel a crop starts at when the margin is odd: ``nearest`` even one as
            torchvision's, or ``down`` as transformers'.
        interpolation: Pillow's antialiased filter of that name.
        mean: of each colour, in 0 to 1.
        std: of each colour.
        tokenizer: ``clip-bpe``, ``open_clip:<architecture>`` or ``tokenizer.json``.
        context_length: tokens L of a text.
        pad_id: the token that fills a text up, for ``tokenizer.json``.
    """

    name: str
    logit_scale: float
    height: int
    width: int
    shortest: int | None
    crop_rounding: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer: str
    context_length: int
    pad_id: int

    def to_json(self) -> str:
        """The content of ``teacher.json``."""
        image = ("height", "width", "shortest", "crop_rounding", "interpolation", "mean", "std")
        text = ("tokenizer", "context_length", "pad_id")
        plain = {"format": PAIR_FORMAT, "name": self.name, "logit_scale": self.logit_scale}
        parts = {"image": {k: getattr(self, k) for k in image}, "text": {k: getattr(self, k) for k in text}}
        return json.dumps(plain | parts, indent=1)

    @classmethod
    def read(cls, path: Path) -> PairSpec:
        """Read ``teacher.json``.

        Raises:
            ConfigError: it is no such file; all problems are listed.
        """
        problems: list[str] = []
        try:
            fields = Fields(parse(path.read_bytes()), "", problems)
        except JsonProblems as error:
            msg = f"{path}: expected JSON, found {error}; write it anew"
            raise ConfigError(msg) from error
        if (found := fields.text("format")) != PAIR_FORMAT:
            fields.note("format", f"must be {PAIR_FORMAT!r}, found {found!r}")
        image, text = fields.inner("image"), fields.inner("text")
        shortest = image.take("shortest")
        if not (shortest is None or (type(shortest) is int and 1 <= shortest <= 4096)):
            image.note("shortest", f"must be null or an integer from 1 to 4096, found {shortest!r}")
        spec = cls(
            name=fields.text("name"),
            logit_scale=fields.number("logit_scale", 1e-6, 1e6),
            height=image.integer("height", 1, 4096),
            width=image.integer("width", 1, 4096),
            shortest=shortest if isinstance(shortest, int) else None,
            crop_rounding=_choice(image, "crop_rounding", ("nearest", "down")),
            interpolation=_choice(image, "interpolation", tuple(_FILTERS)),
            mean=_three(image, "mean", -10.0),
            std=_three(image, "std", 1e-6),
            tokenizer=text.text("tokenizer"),
            context_length=text.integer("context_length", 1, 100_000),
            pad_id=text.integer("pad_id", 0, 10_000_000),
        )
        if spec.shortest is not None and spec.shortest < max(spec.height, spec.width):
            image.note("shortest", f"must be at least height and width, found {spec.shortest}")
        known = spec.tokenizer in ("clip-bpe", "tokenizer.json") or spec.tokenizer.startswith("open_clip:")
        if not known:
            expected = "'clip-bpe', 'open_clip:<architecture>' or 'tokenizer.json'"
            text.note("tokenizer", f"must be {expected}, found {spec.tokenizer!r}")
        for part in (fields, image, text):
            part.finish()
        if problems:
            msg = f"{path}: {'; '.join(problems)}. See vlkd_distill/onnx_pair.py for the format."
            raise ConfigError(msg)
        return spec

    def prepare(self, image: Image.Image) -> FloatArray:
        """Resize, crop and normalise an RGB image: ``(3, H, W)``."""
        width, height = self.width, self.height
        if self.shortest is not None:
            scaled = (self.shortest * max(image.size)) // min(image.size)
            width, height = (
                (self.shortest, scaled) if image.width <= image.height else (scaled, self.shortest)
            )
        image = image.convert("RGB").resize((width, height), _FILTERS[self.interpolation])
        halves = (width - self.width) / 2, (height - self.height) / 2
        left, top = (round(half) if self.crop_rounding == "nearest" else int(half) for half in halves)
        pixels = np.asarray(image.crop((left, top, left + self.width, top + self.height)), np.float32) / 255
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.asarray((pixels - mean) / std, np.float32).transpose(2, 0, 1)


class OnnxPairTeacher:
    """A CLIP-like model as two ONNX graphs, prepared and tokenised as its ``teacher.json`` says."""

    def __init__(self, name: str, folder: Path) -> None:
        """Open the pair.

        Args:
            name: how the user named it.
            folder: where the files lie.

        Raises:
            ConfigError: a file is missing or not what the format says.
            UnavailableError: a package is missing, or onnxruntime cannot load a graph.
        """
        check_name(f"onnx-pair:{folder}")
        self.name = name
        self.spec = PairSpec.read(folder / "teacher.json")
        self.logit_scale = self.spec.logit_scale
        self.fingerprint = teacher_key(f"onnx-pair:{folder}")
        self._tokenize = _tokenizer(self.spec, folder)
        self._image, self._text = _Graph(folder / "image.onnx"), _Graph(folder / "text.onnx")
        self.dim = int(self.embed_texts(["a photo"]).shape[1])
        size = int(self.embed_images([Image.new("RGB", (self.spec.width, self.spec.height))]).shape[1])
        if size != self.dim:
            msg = (
                f"{folder}: expected two towers into one space, found embeddings of size {size} from image.onnx and "
                f"{self.dim} from text.onnx. Export both from one model, with their projections."
            )
            raise ConfigError(msg)

    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Embed RGB images, each prepared by the teacher's own preprocessing: unit rows ``(N, D)``."""
        return unit_rows(self._image.run(np.stack([self.spec.prepare(image) for image in images])))

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts: unit rows ``(N, D)``.

        Raises:
            DataError: an embedding is not finite.
        """
        rows = unit_rows(self._text.run(*self._tokenize(list(texts))))
        refuse_not_finite(rows, f"The teacher '{self.name}'", "text", [repr(text) for text in texts])
        return rows

    @torch.no_grad()
    def embed_views(self, views: Tensor) -> Tensor:
        """Embed augmented views ``(N, 3, H, W)``, float32 in 0 to 1: unit rows ``(N, D)``, no gradient."""
        spec = self.spec
        if tuple(views.shape[-2:]) != (spec.height, spec.width):
            views = F.interpolate(
                views, (spec.height, spec.width), mode=spec.interpolation, antialias=True, align_corners=False
            ).clamp(0, 1)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        rows = unit_rows(self._image.run(((views.float().cpu() - mean) / std).numpy()))
        refuse_not_finite(rows, f"The teacher '{self.name}'", "view", range(len(rows)))
        return torch.from_numpy(rows).to(views.device)


class _Graph:
    """One ONNX graph, fed by the number of rows it wants."""

    def __init__(self, path: Path) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            msg = (
                f"{path}: running it needs onnxruntime, which is not installed: pip install 'vlkd-edge[ort]'."
            )
            raise UnavailableError(msg) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:
            msg = f"{path}: onnxruntime cannot load it: {first_line(error)}. Export the tower again."
            raise UnavailableError(msg) from error
        self._path = path
        self._inputs = self._session.get_inputs()
        outputs = self._session.get_outputs()
        odd = [entry.name for entry in self._inputs[1:] if entry.name != "attention_mask"]
        if len(outputs) != 1 or not self._inputs or odd:
            msg = (
                f"{path}: expected one input (and for texts attention_mask) and one output, found "
                f"{[entry.name for entry in self._inputs]} and {[entry.name for entry in outputs]}; "
                "export the tower with its embedding alone"
            )
            raise ConfigError(msg)
        fixed = self._inputs[0].shape[0] if self._inputs[0].shape else None
        self._rows = fixed if isinstance(fixed, int) and fixed > 0 else None

    def run(self, *arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Feed arrays ``(N, ...)`` in order, as many as there are inputs: ``(N, D)``."""
        found = [self._batch(batch) for batch in self._batches(arrays)]
        rows: npt.NDArray[Any] = np.concatenate(found)[: len(arrays[0])]
        return rows

    def _batches(self, arrays: Sequence[npt.NDArray[Any]]) -> Iterator[list[npt.NDArray[Any]]]:
        step = self._rows or _BATCH
        for start in range(0, len(arrays[0]), step):
            batch = [array[start : start + step] for array in arrays]
            if self._rows and len(batch[0]) < step:  # the last row again, and thrown away by `run`
                batch = [np.concatenate([array, *[array[-1:]] * (step - len(array))]) for array in batch]
            yield batch

    def _batch(self, batch: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        feed = {
            entry.name: np.ascontiguousarray(array.astype(_TYPES.get(entry.type, array.dtype)))
            for entry, array in zip(self._inputs, batch, strict=False)
        }
        try:
            rows: npt.NDArray[Any] = self._session.run(None, feed)[0]
        except Exception as error:
            msg = f"{self._path}: cannot be run on {[a.shape for a in batch]}: {first_line(error)}."
            raise ConfigError(msg) from error
        if rows.ndim != 2 or len(rows) != len(batch[0]) or rows.dtype.kind != "f":
            msg = (
                f"{self._path}: expected float embeddings ({len(batch[0])}, D), found {rows.dtype} {rows.shape}; "
                "export the tower with its pooled and projected output"
            )
            raise ConfigError(msg)
        return rows


_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def _tokenizer(spec: PairSpec, folder: Path) -> Tokenize:
    """From texts to ids and mask ``(N, L)``."""
    if spec.tokenizer != "tokenizer.json":
        return _open_clip_tokenizer(spec)
    try:
        import tokenizers  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        msg = f"{folder}: its tokenizer.json needs the package tokenizers: {HF_INSTALL}."
        raise UnavailableError(msg) from error
    try:
        reader: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        msg = f"{folder}: tokenizer.json cannot be read: {first_line(error)}. Copy it from the model's files."
        raise ConfigError(msg) from error
    reader.enable_truncation(spec.context_length)
    reader.enable_padding(
        length=spec.context_length, pad_id=spec.pad_id, pad_token=reader.id_to_token(spec.pad_id) or "[PAD]"
    )

    def tokenize(texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        entries = reader.encode_batch(list(texts))
        ids = np.array([entry.ids for entry in entries], np.int64)
        return ids, np.array([entry.attention_mask for entry in entries], np.int64)

    return tokenize


def _open_clip_tokenizer(spec: PairSpec) -> Tokenize:
    try:
        import open_clip

        with quiet():
            reader = (
                open_clip.SimpleTokenizer(context_length=spec.context_length)
                if spec.tokenizer == "clip-bpe"
                else open_clip.get_tokenizer(
                    spec.tokenizer.removeprefix("open_clip:"), context_length=spec.context_length
                )
            )
    except Exception as error:
        msg = (
            f"The tokenizer '{spec.tokenizer}' of '{spec.name}' cannot be had: {first_line(error)}. Put its "
            "tokenizer.json into the folder and name that."
        )
        raise UnavailableError(msg) from error

    def tokenize(texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        ids = reader(list(texts)).numpy()
        return ids, (ids != 0).astype(np.int64)

    return tokenize


def _choice(fields: Fields, key: str, allowed: tuple[str, ...]) -> str:
    value = fields.text(key)
    if value not in allowed:
        fields.note(key, f"must be one of {', '.join(allowed)}")
    return value


def _three(fields: Fields, key: str, low: float) -> tuple[float, float, float]:
    value = fields.take(key)
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(type(n) in (int, float) and low <= n <= 10 for n in numbers):
        fields.note(key, f"must be three numbers from {low:g} to 10, found {value!r}")
        return (1.0, 1.0, 1.0)
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
