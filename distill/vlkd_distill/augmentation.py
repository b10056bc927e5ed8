"""The limits of random views, as plain values that need no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a random view may lie from the image.

    Attributes:
        min_area: smallest crop, as a share of the image's area.
        flip: chance of a mirrored view.
        jitter: largest relative change of brightness, contrast and saturation; a turn of the hue by up
            to ``jitter`` full circles goes with it.
        grayscale: chance of a view without colour.

    References:
        VL2V-ADiP's training views: crops of 0.7 to 1.0, flip, ColorJitter(0.3), grayscale 0.1.
    """

    min_area: float = 0.7
    flip: float = 0.5
    jitter: float = 0.3
    grayscale: float = 0.1
