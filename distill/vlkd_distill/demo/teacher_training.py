"""The training of the demo teacher: image-text contrast in which every true caption of a picture counts.

Letters in shapes: B batch, S side of the stored pictures, D embedding width, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.nn import functional

from vlkd_bench.machine import read_machine
from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import ConfigError

from .captions import describe
from .scene import Scene
from .teacher_data import fitting, scene_codes
from .teacher_model import IMAGE_SIZE, new_model

_WARM_UP_STEPS = 200
_EMA_DECAY = 0.998
_LARGEST_SCALE = 50.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a training run; a run resumes only with the same."""

    seed: int = 0
    per_class: int = 500
    epochs: int = 16
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if self.seed < 0 or min(self.per_class, self.epochs, self.batch - 1) < 1:
            msg = f"Expected a seed of 0 or more, counts of 1 or more and a batch above 1, found {self}."
            raise ConfigError(msg)


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(read_machine().isa)


def augment(pictures: torch.Tensor) -> torch.Tensor:
    """Shift, turn, scale, recolour and roughen: (B, S, S, 3) uint8 to (B, 3, 64, 64) in about -1..1.

    Never mirrored: a caption may say which way the object faces.
    """
    count = len(pictures)

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(count, *shape).uniform_(low, high)

    angle, scale = draw(-0.12, 0.12), draw(0.82, 1.12)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cosine, -sine, draw(-0.09, 0.09), sine, cosine, draw(-0.09, 0.09)], dim=1)
    grid = functional.affine_grid(
        theta.view(-1, 2, 3), [count, 3, IMAGE_SIZE, IMAGE_SIZE], align_corners=False
    )
    x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    x = functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    x = x * draw(0.8, 1.2, 1, 1, 1) * draw(0.94, 1.06, 3, 1, 1) + draw(-0.12, 0.12, 1, 1, 1)
    x = x + torch.randn_like(x) * draw(0, 0.06, 1, 1, 1)
    return x.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def contrast(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, true: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy between pictures and captions, spread evenly over all true pairs.

    Args:
        images: (B, D) unit rows.
        texts: (B, D) unit rows.
        scale: () logit scale.
        true: (B, B) bool, which captions (columns) are true of which pictures (rows); true on the diagonal.

    References:
        Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3, with the one-hot targets replaced
        by all true pairs as in Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2.
    """
    logits = scale * images @ texts.T
    weights = true.float()
    by_image = -(logits.log_softmax(1) * weights).sum(1) / weights.sum(1)
    by_text = -(logits.log_softmax(0) * weights).sum(0) / weights.sum(0)
    return (by_image.mean() + by_text.mean()) / 2


class Trainer:
    """The state of one training run, which can be written after each epoch and taken up again.

    Args:
        folder: Where the configuration is written and the state kept.
        settings: What decides the run.
        pictures: (N, S, S, 3) uint8.
        scenes: The N scenes they show.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        pictures: np.ndarray[Any, np.dtype[np.uint8]],
        scenes: Sequence[Scene],
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self._pictures, self._scenes = settings, pictures, scenes
        self._codes = scene_codes(scenes)
        self.model = new_model(folder).to(memory_format=torch.channels_last)
        self._tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.used_tokens = torch.zeros(self.model.vocab_size, dtype=torch.bool)
        self.ema = {name: value.clone() for name, value in self.model.state_dict().items()}
        large = [p for p in self.model.parameters() if p.ndim >= 2]
        small = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": large, "weight_decay": settings.weight_decay},
            {"params": small, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
        self._autocast = fast_bfloat16()
        self.epoch, self.step = 0, 0
        self._state_file = folder / "training-state.safetensors"

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches the scenes make."""
        return max(1, len(self._scenes) // self.settings.batch)

    def run_epoch(self, progress: Callable[[int, float], None]) -> float:
        """Train one epoch and write the state; returns the mean loss.

        Args:
            progress: Called after each step with the number of pictures and the loss.
        """
        rng = np.random.default_rng([self.settings.seed, self.epoch])
        torch.manual_seed(int(rng.integers(2**31)))
        order = rng.permutation(len(self._scenes))
        self.model.train()
        losses = []
        for k in range(self.steps_per_epoch):
            rows = np.sort(order[k * self.settings.batch : (k + 1) * self.settings.batch])
            losses.append(self._train_step(rows, rng))
            progress(len(rows), losses[-1])
        self.epoch += 1
        self._write_state()
        return float(np.mean(losses))

    def _train_step(self, rows: np.ndarray[Any, np.dtype[np.int64]], rng: np.random.Generator) -> float:
        captions = [describe(self._scenes[row], rng) for row in rows]
        tokens = self._tokenizer([caption.text for caption in captions])
        self.used_tokens[tokens.unique()] = True
        true = torch.from_numpy(fitting(self._codes[rows], captions))
        x = augment(torch.from_numpy(self._pictures[rows]))
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            images = self.model.encode_image(x)
        images = functional.normalize(images.float(), dim=-1)
        texts = self.model.encode_text(tokens, normalize=True)
        loss = contrast(images, texts, self.model.logit_scale.exp(), true)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(_LARGEST_SCALE))
        self.step += 1
        self._follow()
        return float(loss.detach())

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to zero."""
        total = self.steps_per_epoch * self.settings.epochs
        warm = min(1.0, (self.step + 1) / min(_WARM_UP_STEPS, total))
        return self.settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / total))

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights towards the trained ones."""
        share = 1 - min(_EMA_DECAY, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, share)
            else:
                self.ema[name].copy_(value)

    def _write_state(self) -> None:
        tensors = {f"model.{name}": value.contiguous() for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value.contiguous() for name, value in self.ema.items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in moments.items()}
        tensors["used_tokens"] = self.used_tokens
        metadata = {
            "settings": json.dumps(asdict(self.settings)),
            "epoch": str(self.epoch),
            "step": str(self.step),
        }
        write_bytes(self._state_file, save(tensors, metadata=metadata))

    def resume(self) -> bool:
        """Take up an earlier run's state if there is one.

        Raises:
            ConfigError: The state belongs to a run with other settings.
        """
        if not self._state_file.is_file():
            return False
        with safe_open(self._state_file, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if json.loads(metadata["settings"]) != asdict(self.settings):
            msg = (
                f"{self._state_file}: expected a run with {asdict(self.settings)}, found one with "
                f"{metadata['settings']}: use those settings, remove the file, or choose another folder."
            )
            raise ConfigError(msg)
        self.model.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        self.ema = {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self.used_tokens = tensors["used_tokens"]
        self.epoch, self.step = int(metadata["epoch"]), int(metadata["step"])
        return True

    def finish(self) -> None:
        """Remove the state once the weights are written."""
        self._state_file.unlink(missing_ok=True)
