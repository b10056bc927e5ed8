"""Learned prompts: tokens in a CLIP's text and image towers, and the teacher that speaks and sees with them.

Letters used in shapes: N images or texts, L tokens of a text, J and K prompted layers of the text and the image
tower, n and m learned tokens a layer, w and v widths of the towers, D embedding size, H and W pixels.

References:
    PromptSRC: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting",
    ICCV 2023 (independent deep prompts in both towers).
    CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022.
    VPT: Jia et al., "Visual Prompt Tuning", ECCV 2022 (deep prompts replace the previous layer's outputs).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.tensorfile import read_tensors, write_tensors
from vlkd_runtime.vectors import ClassVectors

from . import class_vectors
from .compute import CPU
from .losses import unit
from .teachers import OpenClipTeacher

LEARNED = "[learned context]"
"""Stands in a prompt for the learned tokens."""
TEMPLATE = f"{LEARNED} {{}}."
"""The only template of learned prompts; the full stop is PromptSRC's."""

FloatArray = npt.NDArray[np.float32]
_FORMAT = "vlkd-learned-prompts/1"


@dataclass(frozen=True, slots=True)
class TextTower:
    """A plain CLIP text transformer, wherever in the model its parts lie.

    Attributes:
        owner: has the transformer, the embeddings, the last norm and the projection.
        mask: added to the attention ``(L, L)``, or None where every token sees every other.
        pool: which token speaks for the text: ``argmax``, ``eos``, ``first`` or ``last``.
        end: id of the end token, for ``eos``.
        tokenizer: texts to ids ``(N, L)``; the first id of a text is its start token.
    """

    owner: Any
    mask: Tensor | None
    pool: str
    end: int
    tokenizer: Any

    @classmethod
    def of(cls, teacher: OpenClipTeacher, device: torch.device = CPU) -> TextTower:
        """Find the text tower of a teacher, on a device.

        Raises:
            ConfigError: it is no plain CLIP transformer with CLIP's own tokens.
        """
        model: Any = teacher.model_on(device)
        custom = hasattr(model, "text")
        owner = model.text if custom else model
        tokenizer = teacher._tokenizer
        plain = all(hasattr(owner, part) for part in ("token_embedding", "transformer", "ln_final"))
        odd = getattr(owner, "cls_emb", None) is not None or getattr(owner, "use_pad_mask", False)
        if not plain or odd or not hasattr(tokenizer, "sot_token_id") or not owner.transformer.batch_first:
            msg = (
                f"The teacher '{teacher.name}': expected a CLIP text transformer with CLIP's own tokenizer, found "
                f"{type(owner).__name__} with {type(tokenizer).__name__}. Prompts cannot be learned for it: "
                "choose another teacher, or distill without learned prompts."
            )
            raise ConfigError(msg)
        pool, end = ("pool_type", "eos_id") if custom else ("text_pool_type", "text_eos_id")
        return cls(owner, owner.attn_mask, getattr(owner, pool), int(getattr(owner, end, 2)), tokenizer)

    def encode(self, ids: Tensor, prompts: Tensor) -> Tensor:
        """Embed texts whose tokens 1 to n are learned: ``(N, D)``, any length.

        Args:
            ids: ``(N, L)``; what stands at 1 to n does not matter.
            prompts: ``(J, n, w)``; the first layer's take the place of token embeddings, the others that
                of the layer before's outputs. ``(J, N, n, w)`` where every text has its own.
        """
        owner, ids = self.owner, ids.to(prompts.device)
        x = _with_context(owner.token_embedding(ids), prompts[0]) + owner.positional_embedding[: ids.shape[1]]
        for layer, block in enumerate(owner.transformer.resblocks):
            if 0 < layer < len(prompts):
                x = _with_context(x, prompts[layer])
            x = block(x, attn_mask=self.mask)
        pooled = owner.ln_final(x)[torch.arange(len(ids), device=ids.device), self._speakers(ids)]
        projection = owner.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        embedded: Tensor = pooled
        return embedded

    def ids(self, endings: Sequence[str], count: int) -> Tensor:
        """Ids ``(N, L)`` of texts that begin with ``count`` tokens to be learned.

        Raises:
            ConfigError: a text is too long to leave room for them.
        """
        ids: Tensor = self.tokenizer([" ".join(["X"] * count + [ending]) for ending in endings])
        cut = ids[:, -1] == self.tokenizer.eot_token_id
        alone: Tensor = self.tokenizer(list(endings))
        lengths = (alone != 0).sum(-1) + count
        if bool((cut & (lengths > ids.shape[1])).any()):
            first = endings[int((cut & (lengths > ids.shape[1])).int().argmax())]
            msg = (
                f"The text '{first}' and {count} learned tokens are longer than the {ids.shape[1]} tokens the "
                "text tower reads. Learn fewer tokens or shorten the class name."
            )
            raise ConfigError(msg)
        return ids

    def _speakers(self, ids: Tensor) -> Tensor:
        """Position of the token that speaks for each text, ``(N,)``."""
        if self.pool == "argmax":
            return ids.argmax(-1)
        if self.pool == "eos":
            return (ids == self.end).int().argmax(-1)
        return torch.full((len(ids),), 0 if self.pool == "first" else ids.shape[1] - 1)


def _with_context(x: Tensor, tokens: Tensor) -> Tensor:
    """Put learned tokens ``(n, w)``, or ``(N, n, w)``, at 1 to n of every sequence of ``(N, L, w)``."""
    own = tokens.to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x[:, :1], own, x[:, 1 + own.shape[1] :]], 1)


def takes_visual_prompts(visual: nn.Module) -> bool:
    """Whether an image tower is a transformer of open_clip's own, the kind deep prompts go into."""
    from open_clip.transformer import VisionTransformer

    return isinstance(visual, VisionTransformer) and visual.transformer.batch_first


def encode_images(visual: Any, batch: Tensor, prompts: Tensor) -> Tensor:
    """Embed images by a transformer with learned tokens behind its patches: ``(N, D)``, any length.

    Args:
        visual: open_clip's ``VisionTransformer``; without its projection the result is ``(N, v)``.
        batch: normalised images ``(N, 3, H, W)``.
        prompts: ``(K, m, v)``, the first before the tower's first norm. They are read by the other tokens
            and never pooled.
    """
    x = visual._embeds(batch)
    count = prompts.shape[1]
    x = torch.cat([x, visual.ln_pre(prompts[0]).to(x.dtype).expand(len(x), -1, -1)], 1)
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer < len(prompts):
            x = torch.cat([x[:, :-count], prompts[layer].to(x.dtype).expand(len(x), -1, -1)], 1)
        x = block(x)
    pooled: Tensor = visual._pool(x[:, :-count])[0]
    return pooled if visual.proj is None else pooled @ visual.proj


class PromptedTeacher:
    """An open_clip teacher with learned prompts; made after learning, so nothing is embedded too early.

    Texts that begin with `LEARNED` are read with the learned context; all others as the plain teacher
    reads them. Images are seen with the learned visual tokens where there are any.
    """

    def __init__(self, base: OpenClipTeacher, text: Tensor, visual: Tensor | None) -> None:
        """Join a teacher and its prompts.

        Args:
            base: the teacher they were learned for.
            text: ``(J, n, w)``.
            visual: ``(K, m, v)``, or None.
        """
        self.base = base
        self.text = text.detach().clone()
        self.visual = None if visual is None else visual.detach().clone()
        self.name = f"{base.name}+prompts"
        self.dim, self.logit_scale = base.dim, base.logit_scale
        digest = hashlib.sha256(base.fingerprint.encode())
        for part, tensor in self._tensors().items():
            digest.update(f"{part}{tensor.shape}".encode() + tensor.tobytes())
        self.fingerprint = digest.hexdigest()
        self._tower = TextTower.of(base)

    def _tensors(self) -> dict[str, FloatArray]:
        parts = {"text": self.text, "visual": self.visual}
        return {name: tensor.float().numpy() for name, tensor in parts.items() if tensor is not None}

    def save(self, path: Path) -> None:
        """Write the prompts, and which teacher they belong to; the teacher itself is not in the file."""
        metadata = {
            "format": _FORMAT,
            "teacher": self.base.name,
            "teacher_fingerprint": self.base.fingerprint,
        }
        write_bytes(path, write_tensors(self._tensors(), metadata))

    @classmethod
    def load(cls, path: Path, base: OpenClipTeacher) -> PromptedTeacher:
        """Read what `save` wrote.

        Raises:
            DataError: the file is damaged, of another kind, or its prompts were learned for other weights.
        """
        arrays, metadata = read_tensors(path.read_bytes(), where=str(path))
        if metadata.get("format") != _FORMAT or not {"text"} <= set(arrays) <= {"text", "visual"}:
            msg = (
                f"{path}: expected {_FORMAT} with the tensors 'text' and perhaps 'visual', found "
                f"{metadata.get('format', 'no format')!r} with {sorted(arrays)}. Learn the prompts again."
            )
            raise DataError(msg)
        if metadata.get("teacher_fingerprint") != base.fingerprint:
            msg = (
                f"{path}: these prompts were learned for the weights {metadata.get('teacher_fingerprint', '?')[:12]} "
                f"of '{metadata.get('teacher', '?')}', found {base.fingerprint[:12]} of '{base.name}'. "
                "Give that teacher, or learn prompts for this one."
            )
            raise DataError(msg)
        text, visual = (
            torch.from_numpy(np.array(arrays[k])) if k in arrays else None for k in ("text", "visual")
        )
        assert text is not None
        return cls(base, text, visual)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Embed RGB images, prepared by the teacher's own preprocessing: unit rows ``(N, D)``."""
        if self.visual is None:
            return self.base.embed_images(images)
        batch = torch.stack([self.base._preprocess(image) for image in images])
        return self._seen(batch.to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts, with the learned context where they begin with `LEARNED`: unit rows ``(N, D)``.

        Raises:
            ConfigError: a text is too long beside the learned tokens.
        """
        learned = [text.startswith(LEARNED) for text in texts]
        rows = np.empty((len(texts), self.dim), np.float32)
        plain = [text for text, own in zip(texts, learned, strict=True) if not own]
        if plain:
            rows[[not own for own in learned]] = self.base.embed_texts(plain)
        endings = [text[len(LEARNED) :].strip() for text in texts if text.startswith(LEARNED)]
        if endings:
            ids = self._tower.ids(endings, self.text.shape[1])
            rows[learned] = unit(self._tower.encode(ids, self.text)).numpy()
        return rows

    @torch.no_grad()
    def embed_views(self, views: Tensor) -> Tensor:
        """Embed augmented views ``(N, 3, H, W)``, float32 in 0 to 1: unit rows ``(N, D)``, no gradient."""
        if self.visual is None:
            return self.base.embed_views(views)
        return self._seen(normalised(self.base, views))

    @property
    def device(self) -> torch.device:
        """Where it embeds images."""
        return self.base.device

    def _seen(self, batch: Tensor) -> Tensor:
        assert self.visual is not None
        visual = self.base.model_on(batch.device).visual
        return unit(encode_images(visual, batch, self.visual.to(batch.device)))


def normalised(teacher: OpenClipTeacher, views: Tensor) -> Tensor:
    """Views ``(N, 3, H, W)`` in 0 to 1 as the teacher's image tower takes them, at its own size."""
    if tuple(views.shape[-2:]) != teacher.image_size:
        views = F.interpolate(views, teacher.image_size, mode="bilinear", antialias=True, align_corners=False)
    return (views - teacher._mean.to(views.device)) / teacher._std.to(views.device)


def prompted_class_vectors(teacher: PromptedTeacher, names: Sequence[str]) -> ClassVectors:
    """Class vectors from learned prompts: computed once, after learning; their prompts say so.

    Args:
        teacher: with its prompts.
        names: class names in label order, also of classes the prompts were not learned on.

    Returns:
        Unit rows ``(C, D)``; `class_vectors.embed_prompts` gives them again from the stored prompts.

    Raises:
        ConfigError: a name is too long beside the learned tokens.
    """
    return class_vectors.compute(teacher, names, (TEMPLATE,))
