"""Black-box teachers: an ONNX pair run by onnxruntime, and a store of embeddings computed before.

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

A store holds the tensors ``image`` (N, D), ``image_sha256`` (N, 32) uint8, each row the SHA-256 of an image
file's bytes, and ``text`` (T, D); and the metadata ``format``, ``name``, ``logit_scale`` and ``texts``, a
JSON list of the T texts. Class vectors made before go in as texts that are the class names, with the one
template ``{}``.

Letters used in shapes: N images or texts, T stored texts, D embedding size, H and W pixels, L tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError
from vlkd_runtime.strictjson import Fields, JsonProblems, parse
from vlkd_runtime.tensorfile import read_tensors

from .quiet import first_line, quiet
from .teacher_names import check_name, content_key, teacher_key

FloatArray = npt.NDArray[np.float32]
Tokenize = Callable[[Sequence[str]], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]

PAIR_FORMAT = "vlkd-onnx-pair/1"
STORE_FORMAT = "vlkd-embedding-store/1"
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BATCH = 32
# Two copies of one image may have been embedded in different batches; more than this is another embedding.
_SAME = 1e-3


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
            msg = f"{path}: {'; '.join(problems)}. See vlkd_distill/blackbox.py for the format."
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


class StoreTeacher:
    """Embeddings that somebody computed before: it knows the images and texts it holds and nothing else."""

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        """Open the store.

        Args:
            name: how the user named it.
            files: its parts; the same image may be in several.

        Raises:
            DataError: a file is damaged, not in the format, or contradicts another.
        """
        self.name = name
        parts = [_StorePart.read(path) for path in files]
        first = parts[0]
        for part in parts[1:]:
            found = (part.dim, part.logit_scale, part.teacher)
            if found != (first.dim, first.logit_scale, first.teacher):
                msg = (
                    f"{part.where}: expected size, logit_scale and teacher "
                    f"{(first.dim, first.logit_scale, first.teacher)} as in {first.where}, found {found}; "
                    "keep one teacher's embeddings in one folder"
                )
                raise DataError(msg)
        self.dim, self.logit_scale = first.dim, first.logit_scale
        self.fingerprint = content_key(files)
        self._images: dict[bytes, FloatArray] = {}
        self._texts: dict[bytes, FloatArray] = {}
        for part in parts:
            _merge(self._images, part.images, part.where, "image file with SHA-256")
            _merge(self._texts, part.texts, part.where, "text with SHA-256")

    def embed_samples(self, samples: Sequence[Sample]) -> FloatArray:
        """Look images up by the content of their files: unit rows ``(N, D)``.

        Raises:
            DataError: images are not in the store, or their embeddings are not finite.
        """
        keys = [hashlib.sha256(sample.path.read_bytes()).digest() for sample in samples]
        missing = [sample for sample, key in zip(samples, keys, strict=True) if key not in self._images]
        if missing:
            msg = (
                f"The store '{self.name}' has no embedding of {missing[0].path} and {len(missing) - 1} more of "
                f"{len(samples)} images; it holds {len(self._images)}, found by the SHA-256 of the file. Embed "
                "them and add a file with write_store, or take those images out of data.root."
            )
            raise DataError(msg)
        rows = self._rows(self._images, keys)
        refuse_not_finite(rows, f"The store '{self.name}'", "image", [sample.path for sample in samples])
        return rows

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Look texts up, letter by letter: unit rows ``(N, D)``.

        Raises:
            UnavailableError: texts are not in the store.
            DataError: an embedding is not finite.
        """
        keys = [_text_key(text) for text in texts]
        missing = [text for text, key in zip(texts, keys, strict=True) if key not in self._texts]
        if missing:
            msg = (
                f"The store '{self.name}' has no embedding of the text {missing[0]!r} and {len(missing) - 1} more "
                f"of {len(texts)}; it holds {len(self._texts)} texts and cannot embed new ones. Add them with "
                "write_store, or set teacher.templates to those it was made with; for stored class vectors, "
                'store the class names as texts and set teacher.templates = ["{}"].'
            )
            raise UnavailableError(msg)
        rows = self._rows(self._texts, keys)
        refuse_not_finite(rows, f"The store '{self.name}'", "text", [repr(text) for text in texts])
        return rows

    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Refuse: a decoded image no longer tells which file it came from; ask `embed_samples`."""
        msg = (
            f"The store '{self.name}' finds images by their files' content and cannot embed {len(images)} decoded "
            "ones; ask embed_samples, or use a teacher that runs (onnx-pair:, call:, local-dir:)."
        )
        raise UnavailableError(msg)

    def embed_views(self, views: Tensor) -> Tensor:
        """Refuse: nobody embedded these views before."""
        msg = (
            f"The store '{self.name}' holds embeddings of whole images and cannot embed {len(views)} augmented "
            'views. Set distill.teacher_view = "clean_cached".'
        )
        raise UnavailableError(msg)

    def _rows(self, held: dict[bytes, FloatArray], keys: Sequence[bytes]) -> FloatArray:
        return unit_rows(np.stack([held[key] for key in keys]) if keys else np.zeros((0, self.dim)))


def unit_rows(rows: npt.NDArray[Any]) -> FloatArray:
    """Scale rows ``(N, D)`` to length one; a row of zeros, which has no direction, becomes NaN."""
    exact = np.asarray(rows, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True), np.float32)


def refuse_not_finite(rows: FloatArray, who: str, kind: str, names: Sequence[object]) -> None:
    """Refuse embeddings that nothing can be learned from.

    Raises:
        DataError: names the first and counts the others.
    """
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        msg = (
            f"{who} has an embedding that is zero or not finite for {kind} {names[int(bad[0])]} and "
            f"{len(bad) - 1} more: embed it again, or leave it out."
        )
        raise DataError(msg)


@dataclass(frozen=True, slots=True)
class _StorePart:
    where: Path
    teacher: str
    logit_scale: float
    dim: int
    images: list[tuple[bytes, FloatArray]]
    texts: list[tuple[bytes, FloatArray]]

    @classmethod
    def read(cls, path: Path) -> _StorePart:
        tensors, metadata = read_tensors(path.read_bytes(), where=str(path))
        problems: list[str] = []
        if metadata.get("format") != STORE_FORMAT:
            problems.append(f"format must be {STORE_FORMAT!r}, found {metadata.get('format')!r}")
        image, keys, text = (tensors.get(key) for key in ("image", "image_sha256", "text"))
        if image is None or image.ndim != 2 or image.dtype.kind != "f" or image.shape[1] == 0:
            problems.append("image must be a float tensor (N, D)")
        elif keys is None or keys.dtype != np.uint8 or keys.shape != (len(image), 32):
            problems.append(f"image_sha256 must be a uint8 tensor {(len(image), 32)}")
        elif text is None or text.ndim != 2 or text.dtype.kind != "f" or text.shape[1] != image.shape[1]:
            found = None if text is None else text.shape
            problems.append(f"text must be a float tensor (T, {image.shape[1]}) as image, found {found}")
        texts, scale = _texts(metadata, problems), 0.0
        try:
            scale = float(metadata.get("logit_scale", ""))
        except ValueError as error:
            problems.append(f"logit_scale must be a number: {error}")
        if not problems and text is not None and len(texts) != len(text):
            problems.append(f"texts must name {len(text)} rows, found {len(texts)}")
        if not (np.isfinite(scale) and scale > 0):
            problems.append(f"logit_scale must be above 0, found {scale}")
        if problems or image is None or keys is None or text is None:
            msg = f"{path}: not an embedding store: {'; '.join(problems)}. Write it with write_store."
            raise DataError(msg)
        held = [(row.tobytes(), vector) for row, vector in zip(keys, image, strict=True)]
        said = [(_text_key(name), vector) for name, vector in zip(texts, text, strict=True)]
        return cls(path, metadata.get("name", ""), scale, int(image.shape[1]), held, said)


def _texts(metadata: Mapping[str, str], problems: list[str]) -> list[str]:
    try:
        value = parse(metadata.get("texts", ""))
    except JsonProblems as error:
        value = None
        problems.append(f"texts: {error}")
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        problems.append("texts must be a JSON list of texts")
        return []
    return value


def _merge(
    into: dict[bytes, FloatArray], rows: Sequence[tuple[bytes, FloatArray]], where: Path, what: str
) -> None:
    for key, row in rows:
        known = into.setdefault(key, row)
        if known is not row and not np.allclose(known, row, atol=_SAME, equal_nan=True):
            msg = f"{where}: two different embeddings of the {what} {key.hex()}; keep one of them"
            raise DataError(msg)


def _text_key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class _Graph:
    """One ONNX graph, fed by the number of rows it wants."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
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
        msg = f"{folder}: its tokenizer.json needs the package tokenizers: pip install tokenizers."
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
