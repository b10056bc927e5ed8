"""From a teacher's name to the teacher, whatever its form; and a user's own Python code as a teacher.

Letters used in shapes: N images or texts, D embedding size, H and W pixels.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vlkd_runtime.errors import ConfigError, DataError, UnavailableError, VlkdError, first_line

from .answers import refuse_not_finite, unit_rows
from .compute import CPU
from .embedding_store import StoreTeacher
from .onnx_pair import OnnxPairTeacher
from .querybudget import FOLDER, BudgetedTeacher
from .teacher_names import (
    call_parts,
    check_name,
    exported_by_optimum,
    form_of,
    is_counted,
    store_files,
    teacher_key,
)
from .teachers import OpenClipTeacher, Teacher

FloatArray = npt.NDArray[np.float32]

# What CLIP's own training ends at; it scales logits and never changes which class is best.
_CLIP_SCALE = 100.0


def load(name: str, cache: Path, budget: int | None = None, device: torch.device = CPU) -> Teacher:
    """Load a teacher by its name.

    Args:
        name: of one of the forms in `vlkd_distill.teacher_names`.
        cache: where exported graphs, answers and the count of questions are kept.
        budget: how many images and texts the teacher may be asked about, in all runs that share the cache;
            None for any number. A store asks nobody and has no budget. A callable is counted always.
        device: where an open_clip model embeds images; the others decide themselves.

    Raises:
        ConfigError: the name has another form, or its files are missing or wrong.
        DataError: a store or the kept answers are damaged.
        UnavailableError: weights, a package or a module cannot be had.
    """
    check_name(name)
    form, rest = form_of(name), name.partition(":")[2]
    teacher: Teacher
    if form == "store":
        return StoreTeacher(name, store_files(rest))
    if form == "onnx-pair":
        teacher = OnnxPairTeacher(name, Path(rest))
    elif form == "call":
        teacher = cast("Teacher", CallableTeacher.load(name))
    elif form in ("hf", "hf-dir"):
        from .transformers_export import export_optimum, export_transformers

        folder = cache / "onnx-pairs" / hashlib.sha256(teacher_key(name).encode()).hexdigest()[:32]
        if not (folder / "teacher.json").is_file():
            if form == "hf-dir" and exported_by_optimum(rest):
                export_optimum(Path(rest), folder)
            else:
                export_transformers(rest, folder)
        teacher = OnnxPairTeacher(name, folder)
    else:
        opened = OpenClipTeacher.load(name)
        opened.device = device
        teacher = opened
    if not is_counted(name, budget):
        return teacher
    # Casts: these two learn ``dim`` from the first answer, and mypy takes a Protocol's attribute as settable.
    return cast("Teacher", BudgetedTeacher(teacher, budget, cache / FOLDER))


class CallableTeacher:
    """A user's own code: an object with ``embed_images`` and ``embed_texts``, or a function for each.

    An object may also have ``logit_scale`` (100 if not), ``fingerprint`` and ``embed_views``; a class or
    function that gives such an object is called without arguments. The two functions get one image or one
    text and give one vector; their module may have ``logit_scale`` and ``fingerprint``. Without a
    fingerprint, the content of the module's file stands for it: a model that changes behind an unchanged
    file must name one. Without ``embed_views``, views become 8-bit images. Vectors have any length.
    """

    def __init__(self, name: str, code: Any, owner: Any) -> None:
        """Wrap the user's object.

        Args:
            name: how the user named it.
            code: has ``embed_images`` and ``embed_texts``.
            owner: has ``logit_scale`` and ``fingerprint``, or not.

        Raises:
            ConfigError: a part is missing or of another type.
        """
        lacking = [
            part for part in ("embed_images", "embed_texts") if not callable(getattr(code, part, None))
        ]
        if lacking:
            msg = (
                f"The teacher '{name}' is a {type(code).__name__} without {' and '.join(lacking)}. Expected an object "
                "with both, or 'call:<module>:<image function>,<text function>'."
            )
            raise ConfigError(msg)
        scale = getattr(owner, "logit_scale", _CLIP_SCALE)
        if not isinstance(scale, (int, float)) or not (math.isfinite(scale) and scale > 0):
            msg = f"The teacher '{name}': expected a finite logit_scale above 0, found {scale!r}; correct it."
            raise ConfigError(msg)
        self.name, self.logit_scale = name, float(scale)
        identity = getattr(owner, "fingerprint", None) or teacher_key(name)
        self.fingerprint = hashlib.sha256(f"{name}\n{identity}".encode()).hexdigest()
        self._code = code
        self._size: int | None = None

    @classmethod
    def load(cls, name: str) -> CallableTeacher:
        """Import what ``call:<module>:<attribute>`` names, and nothing else.

        Raises:
            ConfigError: the attribute is missing or no teacher.
            UnavailableError: the module cannot be imported, or making the object fails.
        """
        module_name, attributes = call_parts(name)
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            msg = (
                f"The teacher '{name}': the module '{module_name}' cannot be imported: {first_line(error)}. Install "
                "it, correct it, or set PYTHONPATH to the folder it lies in."
            )
            raise UnavailableError(msg) from error
        found = [_attribute(module, attribute, name) for attribute in attributes]
        if len(found) == 2:
            return cls(name, _Functions(*found), module)
        code = found[0]
        if callable(code) and (isinstance(code, type) or not hasattr(code, "embed_images")):
            try:
                code = code()
            except Exception as error:
                msg = f"The teacher '{name}' cannot be made: calling it without arguments gave: {first_line(error)}."
                raise UnavailableError(msg) from error
        return cls(name, code, code)

    @functools.cached_property
    def dim(self) -> int:
        """Embedding size D, from the first answer; before it, one text is asked about."""
        if self._size is None:
            self.embed_texts(["a photo"])
        assert self._size is not None
        return self._size

    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Embed RGB images: unit rows ``(N, D)``, which may be NaN, so that who knows the file can name it.

        Raises:
            DataError: the answer has another shape.
            UnavailableError: the user's code failed.
        """
        return self._ask(self._code.embed_images, list(images), "images")

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts: unit rows ``(N, D)``.

        Raises:
            DataError: the answer has another shape, or is not finite.
            UnavailableError: the user's code failed.
        """
        rows = self._ask(self._code.embed_texts, list(texts), "texts")
        refuse_not_finite(rows, f"The teacher '{self.name}'", "text", [repr(text) for text in texts])
        return rows

    @torch.no_grad()
    def embed_views(self, views: Tensor) -> Tensor:
        """Embed augmented views ``(N, 3, H, W)``, float32 in 0 to 1: unit rows ``(N, D)``, no gradient.

        Raises:
            DataError, UnavailableError: as `embed_texts`.
        """
        if callable(own := getattr(self._code, "embed_views", None)):
            rows = self._ask(own, views, "views")
        else:
            pixels = (views.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            rows = self._ask(self._code.embed_images, [Image.fromarray(each) for each in pixels], "views")
        refuse_not_finite(rows, f"The teacher '{self.name}'", "view", range(len(rows)))
        return torch.from_numpy(rows).to(views.device)

    def _ask(self, function: Callable[[Any], Any], items: Any, kind: str) -> FloatArray:
        try:
            rows = _plain(function(items))
        except VlkdError:
            raise
        except Exception as error:  # the user's code, which may ask a network
            msg = f"The teacher '{self.name}' failed on {len(items)} {kind}: {first_line(error)}. Correct its code."
            raise UnavailableError(msg) from error
        size = self._size if self._size is not None else "D"
        good = rows.ndim == 2 and len(rows) == len(items) and rows.shape[1] > 0 and rows.dtype.kind in "fiu"
        if not good or (self._size is not None and rows.shape[1] != self._size):
            msg = (
                f"The teacher '{self.name}' was asked about {len(items)} {kind}: expected numbers of shape "
                f"({len(items)}, {size}), found {rows.dtype} of {rows.shape}; correct its code."
            )
            raise DataError(msg)
        self._size = int(rows.shape[1])
        return unit_rows(rows)


class _Functions:
    """Two functions of one item each, as an object that takes many."""

    def __init__(self, image: Any, text: Any) -> None:
        self.embed_images = functools.partial(_each, image)
        self.embed_texts = functools.partial(_each, text)


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> npt.NDArray[Any]:
    return np.stack([_plain(function(item)) for item in items])


def _plain(value: Any) -> npt.NDArray[Any]:
    return np.asarray(value.detach().float().cpu() if isinstance(value, Tensor) else value)


def _attribute(module: Any, path: str, name: str) -> Any:
    value = module
    for part in path.split("."):
        if not hasattr(value, part):
            msg = (
                f"The teacher '{name}': expected '{path}' in the module '{module.__name__}', found no '{part}'. "
                "Correct the name in teacher.model."
            )
            raise ConfigError(msg)
        value = getattr(value, part)
    if len(call_parts(name)[1]) == 2 and not callable(value):
        msg = f"The teacher '{name}': expected '{path}' to be a function, found a {type(value).__name__}."
        raise ConfigError(msg)
    return value
