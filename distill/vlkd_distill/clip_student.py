"""Students made of a CLIP's image tower: with learned visual prompts and a projector, or as the teacher's copy.

Letters used in shapes: B batch, n backbone features, D embedding size, K prompted layers, m learned tokens a
layer, v width of the tower, H and W pixels, L positions.

References:
    PromptKD: Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024.
    VL2V-SD: Addepalli et al., "Leveraging Vision-Language Models for Improving Domain Generalization in Image
    Classification", CVPR 2024 (the student starts as the teacher's image encoder).
"""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_runtime.errors import ConfigError, first_line
from vlkd_runtime.preprocess import PreprocessSpec

from .processes import ALONE, Ring
from .prompting import encode_images, takes_visual_prompts
from .students import Student
from .teachers import OpenClipTeacher


class TwoLayerProjector(nn.Module):
    """PromptKD's projector: linear, norm, ReLU, linear; for a student whose feature size is not the teacher's.

    Attributes:
        first: ``(B, n)`` to ``(B, D)``.
        norm: over the batch as in the paper, or over each row, which small batches do not disturb.
        second: ``(B, D)`` to ``(B, D)``.
        ring: the processes that share each batch in training, whose statistics are of the whole batch.

    References:
        PromptKD, section 3.3 and its code (batch norm between the layers).
    """

    def __init__(self, features: int, outputs: int, norm: Literal["batch", "layer"], seed: int) -> None:
        """Start from random weights that the seed gives.

        Args:
            features: n.
            outputs: D.
            norm: kind of norm.
            seed: of the weights.
        """
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.first = nn.Linear(features, outputs)
            self.norm = nn.BatchNorm1d(outputs) if norm == "batch" else nn.LayerNorm(outputs)
            self.second = nn.Linear(outputs, outputs)
        self.ring = ALONE

    def forward(self, features: Tensor) -> Tensor:
        """Project ``(B, n)`` to ``(B, D)``."""
        x, norm = self.first(features), self.norm
        x = self._over_the_batch(x, norm) if isinstance(norm, nn.BatchNorm1d) else norm(x)
        projected: Tensor = self.second(F.relu(x))
        return projected

    def _over_the_batch(self, x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        """Batch norm of ``(B, D)``, by this module's mode and not the layer's.

        Frozen batch norm keeps the statistics of start weights, and a fresh layer has none worth keeping.
        """
        if not self.training or self.ring.count == 1:
            own = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            return F.batch_norm(x, *own, training=self.training, momentum=norm.momentum or 0.0, eps=norm.eps)
        rows = x.float()
        sums = self.ring.add_up(torch.cat([rows.sum(0), rows.new_tensor([float(len(rows))])]))
        count = float(sums[-1].detach())
        mean = sums[:-1] / count
        variance = self.ring.add_up((rows - mean).square().sum(0)) / count
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        with torch.no_grad():
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * count / max(1.0, count - 1), norm.momentum)
        return ((rows - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias).to(x.dtype)


def share_statistics(student: nn.Module, ring: Ring) -> None:
    """Let a student's projector, if it has one, take its statistics of the whole batch of these processes."""
    for module in student.modules():
        if isinstance(module, TwoLayerProjector):
            module.ring = ring


class PromptedTower(nn.Module):
    """A frozen image transformer whose learned tokens are all that trains, whoever asks for more.

    Attributes:
        tower: open_clip's ``VisionTransformer``, always in evaluation mode.
        prompts: ``(K, m, v)``.
    """

    def __init__(self, tower: nn.Module, prompts: Tensor) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.prompts = nn.Parameter(prompts)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, n)`` of normalised images ``(B, 3, H, W)``."""
        return encode_images(self.tower, images, self.prompts)

    def requires_grad_(self, requires_grad: bool = True) -> PromptedTower:
        """Let the prompts train, or not; the tower never does."""
        self.prompts.requires_grad_(requires_grad)
        return self

    def train(self, mode: bool = True) -> PromptedTower:
        """Set the mode of this module; the tower stays as it is at test time."""
        self.training = mode
        return self


def prompted_student(
    source: OpenClipTeacher,
    image_size: int,
    outputs: int,
    *,
    tokens: int = 4,
    layers: int = 9,
    norm: Literal["batch", "layer"] = "batch",
    seed: int = 0,
) -> Student:
    """Make PromptKD's student: a frozen CLIP image transformer, deep visual prompts and a two-layer projector.

    Args:
        source: the model whose image tower the student is; any one, usually smaller than the teacher.
        image_size: height and width of the student's images in pixels.
        outputs: D of the teacher.
        tokens: m.
        layers: K; all layers of a tower with fewer.
        norm: of the projector.
        seed: of prompts and projector.

    Raises:
        ConfigError: the tower is no transformer of open_clip's own, or cannot take the size.
    """
    visual = _copy(source, image_size)
    if not takes_visual_prompts(visual):
        msg = (
            f"'{source.name}': expected a vision transformer of open_clip's own for a student with visual prompts, "
            f"found {type(visual).__name__}. Choose a ViT, or train this network by vl2v-sd."
        )
        raise ConfigError(msg)
    blocks, width = len(visual.transformer.resblocks), visual.class_embedding.shape[0]
    noise = torch.randn(min(layers, blocks), tokens, width, generator=torch.Generator().manual_seed(seed))
    tower = PromptedTower(visual, noise * 0.02)
    return _student(source, tower, TwoLayerProjector(source.dim, outputs, norm, seed + 1))


def with_projector(student: Student, outputs: int, norm: Literal["batch", "layer"], seed: int) -> Student:
    """Give any student PromptKD's projector in place of its linear head; the backbone is shared.

    Args:
        student: as `students.create` makes it.
        outputs: D of the teacher.
        norm: of the projector.
        seed: of the projector.
    """
    mean, std = (tuple(part.flatten().tolist()) for part in (student.mean, student.std))
    projector = TwoLayerProjector(student.head.in_features, outputs, norm, seed)
    return Student(student.backbone, _as_head(projector), mean, std)


def with_classifier(student: Student, classes: int, seed: int) -> Student:
    """Give a student a fresh linear classifier in place of its head; the backbone is shared.

    Args:
        student: as `from_teacher` makes it.
        classes: C.
        seed: of the classifier.
    """
    mean, std = (tuple(part.flatten().tolist()) for part in (student.mean, student.std))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Student(student.backbone, nn.Linear(student.head.in_features, classes), mean, std)


def from_teacher(teacher: OpenClipTeacher, image_size: int) -> Student:
    """Make a trainable copy of the teacher's image encoder: VL2V-SD's student, or any method's.

    Before it learns, it embeds an image as the teacher does: the copy has the teacher's weights and its
    normalisation, and where the size is not the teacher's own, its positions are interpolated. The last
    linear layer becomes the student's head; a tower that ends otherwise is given one that does nothing yet. VL2V-SD
    trains everything, head included, in one stage.

    Args:
        teacher: whose image encoder is copied; it does not change.
        image_size: height and width of the student's images in pixels.

    Raises:
        ConfigError: the encoder cannot take images of that size.
    """
    visual = _copy(teacher, image_size)
    backbone, head = _split(visual, teacher.dim)
    student = _student(teacher, backbone, head).requires_grad_(True)
    try:
        with torch.inference_mode():
            student.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:
        raise _size_error(teacher, image_size, error) from error
    return student


def teacher_preprocess(teacher: OpenClipTeacher, image_size: int) -> PreprocessSpec:
    """How the device should resize images so that a student sees what the teacher would.

    Args:
        teacher: whose resizing is described.
        image_size: height and width of the student's images in pixels.

    Raises:
        ConfigError: the teacher resizes in a way the device cannot.
    """
    described: dict[str, Any] = teacher._model.visual.preprocess_cfg  # type: ignore[union-attr, assignment]
    resize = {"squash": "squash", "shortest": "crop"}.get(described["resize_mode"])
    interpolation = described["interpolation"]
    if resize is None or interpolation not in ("bilinear", "bicubic"):
        msg = (
            f"The teacher '{teacher.name}' resizes by '{described['resize_mode']}' with '{interpolation}'; expected "
            "squash or shortest, bilinear or bicubic. Set the preprocessing of the student by hand."
        )
        raise ConfigError(msg)
    return PreprocessSpec(image_size, image_size, cast("Any", resize), 1.0, interpolation)


class _Pooled(nn.Module):
    """CLIP's ResNet up to its last linear layer, attending with the pooled query only.

    The tower's own pooling computes an output for every position and keeps the first.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        pool = tower.attnpool
        tower.attnpool = nn.Identity()
        self.tower = tower
        self.positions = pool.positional_embedding  # (L, n)
        self.query, self.key, self.value = pool.q_proj, pool.k_proj, pool.v_proj
        self.heads: int = pool.num_heads

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, n)`` of normalised images ``(B, 3, H, W)``."""
        x = self.tower(images).flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positions.to(x.dtype)
        parts = (self.query(x[:, :1]), self.key(x), self.value(x))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).flatten(1)


def _split(visual: Any, outputs: int) -> tuple[nn.Module, nn.Linear]:
    """Backbone and head whose composition is the tower; the head is its last linear layer, or one that does nothing."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel

    if isinstance(visual, ModifiedResNet):
        head = visual.attnpool.c_proj
        return _Pooled(visual), head
    if isinstance(visual, TimmModel) and isinstance(getattr(visual.head, "proj", None), nn.Linear):
        head = visual.head.proj
        visual.head.proj = nn.Identity()
        return visual, head
    if takes_visual_prompts(visual) and visual.proj is not None:
        width, outputs = visual.proj.shape
        head = nn.Linear(width, outputs, bias=False)
        head.weight = nn.Parameter(visual.proj.detach().t().contiguous())
        visual.proj = None
        return visual, head
    head = nn.Linear(outputs, outputs, bias=False)
    nn.init.eye_(head.weight)
    return visual, head


def _copy(source: OpenClipTeacher, image_size: int) -> Any:
    """A float32 copy of an image tower, for images of another size."""
    visual: Any = copy.deepcopy(source._model.visual).float()
    if hasattr(visual, "output_tokens"):
        visual.output_tokens = False  # some models hand the patches to a caption decoder as well
    size = (image_size, image_size)
    if source.image_size == size:
        return visual
    try:
        if takes_visual_prompts(visual):
            grid = tuple(side // patch for side, patch in zip(size, visual.patch_size, strict=True))
            visual.positional_embedding = _resized(visual.positional_embedding, visual.grid_size, grid)
            visual.grid_size = grid
        elif hasattr(visual, "attnpool"):
            old, new = (side // 32 for side in (source.image_size[0], image_size))
            pool = visual.attnpool
            pool.positional_embedding = _resized(pool.positional_embedding, (old, old), (new, new))
        elif hasattr(visual, "set_input_size") and hasattr(visual.trunk, "set_input_size"):
            visual.set_input_size(size)
    except Exception as error:
        raise _size_error(source, image_size, error) from error
    visual.image_size = size
    return visual


def _resized(positions: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> nn.Parameter:
    """Interpolate positions ``(1 + L, v)``: the first is no place in the image and stays."""
    first, places = positions[:1].detach(), positions[1:].detach()
    picture = places.t().reshape(1, -1, *old)
    picture = F.interpolate(picture, new, mode="bicubic", antialias=True, align_corners=False)
    return nn.Parameter(torch.cat([first, picture.flatten(2)[0].t()]).contiguous())


def _student(source: OpenClipTeacher, backbone: nn.Module, head: nn.Module) -> Student:
    visual: Any = source._model.visual
    mean, std = tuple(visual.image_mean), tuple(visual.image_std)
    student = Student(backbone, _as_head(head), mean, std)
    backbone.to(memory_format=torch.channels_last)
    return student


def _as_head(head: nn.Module) -> nn.Linear:
    # A Student only calls its head; the cast says so to the type checker.
    return cast("nn.Linear", head)


def _size_error(source: OpenClipTeacher, image_size: int, error: Exception) -> ConfigError:
    msg = (
        f"The image tower of '{source.name}' cannot take images of {image_size} pixels (student.image_size): "
        f"{first_line(error)}. Choose another size; its own is {source.image_size[0]}."
    )
    return ConfigError(msg)
