"""Teachers: anything that puts images and words into one space.

Letters used in shapes: N images or texts, D embedding size, H and W pixels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlkd_runtime.errors import UnavailableError, first_line

from .compute import CPU
from .losses import unit
from .quiet import quiet
from .teacher_names import check_name, folder_of, open_clip_names

FloatArray = npt.NDArray[np.float32]


def device_for(teacher: Teacher) -> torch.device:
    """Where a teacher had best be shown views: a black box has no preference."""
    found: torch.device = getattr(teacher, "device", CPU)
    return found


class Teacher(Protocol):
    """A black box that embeds images and texts; all that distillation needs.

    Attributes:
        name: how the user named it.
        fingerprint: hash of weights and preprocessing; changes whenever an embedding could.
        dim: embedding size D.
        logit_scale: factor from cosines to logits.
    """

    name: str
    fingerprint: str
    dim: int
    logit_scale: float

    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Embed RGB images, each prepared by the teacher's own preprocessing: unit rows ``(N, D)``."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts: unit rows ``(N, D)``."""
        ...

    def embed_views(self, views: Tensor) -> Tensor:
        """Embed augmented views ``(N, 3, H, W)``, float32 in 0 to 1: unit rows ``(N, D)``, no gradient."""
        ...


class OpenClipTeacher:
    """Any open_clip model: a hub name, or a folder with its config and weights.

    Attributes:
        image_size: height and width in pixels that its image network takes.
        device: where it embeds images; views are embedded where they are, and texts on the processor.
    """

    def __init__(self, name: str, model: nn.Module, preprocess: Any, tokenizer: Any) -> None:
        self.name = name
        self.device = CPU
        self._model = model.eval().requires_grad_(False)
        self._moved: dict[torch.device, Any] = {}
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        visual: Any = model.visual
        size = visual.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        self._mean = torch.tensor(visual.image_mean).view(1, 3, 1, 1)
        self._std = torch.tensor(visual.image_std).view(1, 3, 1, 1)
        self.logit_scale = float(model.logit_scale.exp())  # type: ignore[operator]
        self.fingerprint = _fingerprint(model, f"{preprocess!r}\n{model!r}\n{_config_text(name)}")
        self.dim = int(self.embed_texts(["a photo"]).shape[1])

    @classmethod
    def load(cls, name: str) -> OpenClipTeacher:
        """Load a teacher.

        Args:
            name: ``demo`` (the embedded stand-in), ``local-dir:<folder>`` in open_clip's format, or
                ``<architecture>:<pretrained tag>`` as in ``ViT-B-16:laion2b_s34b_b88k``.

        Raises:
            ConfigError: the name has another form, or the folder does not exist.
            UnavailableError: the weights cannot be fetched or read.
        """
        check_name(name)
        architecture, tag = open_clip_names(name)
        import open_clip

        try:
            with quiet():
                # The plain constructor goes on with random weights where there are none; this one refuses.
                model, preprocess = open_clip.create_model_from_pretrained(
                    architecture, pretrained=tag, weights_only=True
                )
                tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:
            msg = (
                f"The teacher '{name}' cannot be loaded: {first_line(error)}. A hub name needs a network "
                'that reaches the hub; otherwise download it once and use teacher.model = "local-dir:<folder>".'
            )
            raise UnavailableError(msg) from error
        return cls(name, model, preprocess, tokenizer)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Embed RGB images, each prepared by the teacher's own preprocessing: unit rows ``(N, D)``."""
        batch = torch.stack([self._preprocess(image) for image in images])
        return self._encode(batch.to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts: unit rows ``(N, D)``."""
        tokens = self._tokenizer(list(texts))
        return unit(self._model.encode_text(tokens)).numpy()  # type: ignore[operator]

    @torch.no_grad()
    def embed_views(self, views: Tensor) -> Tensor:
        """Embed augmented views ``(N, 3, H, W)``, float32 in 0 to 1: unit rows ``(N, D)``, no gradient."""
        if tuple(views.shape[-2:]) != self.image_size:
            views = F.interpolate(
                views, self.image_size, mode="bilinear", antialias=True, align_corners=False
            )
        return self._encode((views - self._mean.to(views.device)) / self._std.to(views.device))

    def _encode(self, batch: Tensor) -> Tensor:
        model = self.model_on(batch.device)
        return unit(model.encode_image(batch.contiguous(memory_format=torch.channels_last)))

    def model_on(self, device: torch.device) -> Any:
        """The whole model on a device; the one on the processor stays, for what reads its weights."""
        if device.type == CPU.type:
            return self._model
        if device not in self._moved:
            self._moved[device] = copy.deepcopy(self._model).to(device)
        return self._moved[device]


def _config_text(name: str) -> str:
    """The configuration of a local model: head counts and the like show in no tensor's shape."""
    folder = folder_of(name)
    return (folder / "open_clip_config.json").read_text() if folder is not None else name


def _fingerprint(model: nn.Module, description: str) -> str:
    """Hash of everything an embedding depends on: weights, architecture and preprocessing."""
    digest = hashlib.sha256(description.encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().numpy()).tobytes())
    return digest.hexdigest()
