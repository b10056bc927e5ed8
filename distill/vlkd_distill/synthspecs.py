"""How a data set is made from class names, as plain values that need no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Rule = Literal["single", "mix", "random", "contrastive"]
Space = Literal["sentence", "token"]


@dataclass(frozen=True, slots=True)
class InversionSettings:
    """How long and how hard `inversion.Inversion` looks.

    Attributes:
        size: side of the images in pixels.
        steps: gradient steps.
        views: V, random views of each image in a step.
        batch: images that are changed together.
        learning_rate: of Adam, on whitened coefficients.
        decay: exponent of the amplitude's fall with frequency; 1 is a natural image's.
        smoothness: weight of the total variation.
        noise: standard deviation of the noise on a view, in pixel values of 0 to 1.
    """

    size: int = 64
    steps: int = 100
    views: int = 2
    batch: int = 16
    learning_rate: float = 0.05
    decay: float = 1.0
    smoothness: float = 0.5
    noise: float = 0.05


@dataclass(frozen=True, slots=True)
class DiffusionSettings:
    """Which text-to-image pipeline `diffusion.Diffusers` asks, and how.

    Attributes:
        model: folder that diffusers' ``save_pretrained`` wrote, or the id of a model on the hub.
        revision: commit or tag on the hub; name one, so that the weights cannot change unseen.
        device: where to compute, as torch names it.
        size: side of the images in pixels; the pipeline's own when 0.
        steps: denoising steps.
        guidance: weight of the prompt against none.
        batch: prompts drawn together.
        strength: how much of an image that is redrawn (`Restyler`) becomes noise first, 0 to 1.
    """

    model: str = ""
    revision: str = ""
    device: str = "cpu"
    size: int = 0
    steps: int = 25
    guidance: float = 7.5
    batch: int = 4
    strength: float = 0.6


@dataclass(frozen=True, slots=True)
class SynthesisSettings:
    """Which images are made from the class names.

    Attributes:
        synthesiser: who draws: the demo world's renderer, the teacher's own gradients, or a diffusers pipeline.
        rule: how prompts are diversified; see `diversify`.
        space: where: on words, or on the vectors that stand for style words (``inversion`` only).
        images_per_class: how many to make; the prompts take turns.
        prompts_per_class: K; the rule ``single`` has one, whatever is said here.
        vocabulary: words of the prompts; ``auto`` takes ``demo`` where the demo teacher or renderer is used.
        exclude: words that no prompt may contain.
        exclude_held_out: leave out the names of held-out domains, too, and the words the demo world has for
            them: what is named is not unseen. Synonyms that it does not know belong in ``exclude``.
        judge: draw again, and at last drop, what the teacher does not take for its class.
        seed: of prompts and images.
        inversion: read by the synthesiser ``inversion``.
        diffusion: read by the synthesiser ``diffusion``.
    """

    synthesiser: Literal["demo", "inversion", "diffusion"] = "demo"
    rule: Rule = "contrastive"
    space: Space = "sentence"
    images_per_class: int = 64
    prompts_per_class: int = 32
    vocabulary: Literal["auto", "general", "demo"] = "auto"
    exclude: tuple[str, ...] = ()
    exclude_held_out: bool = True
    judge: bool = True
    seed: int = 0
    inversion: InversionSettings = field(default_factory=InversionSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)

    def used(self) -> dict[str, Any]:
        """The values that this synthesiser and rule read: what the images depend on."""
        plain = dataclasses.asdict(self)
        for name in ("inversion", "diffusion"):
            if name != self.synthesiser:
                del plain[name]
        if self.rule == "single":
            for name in ("space", "prompts_per_class", "vocabulary", "exclude", "exclude_held_out"):
                del plain[name]
        return plain
