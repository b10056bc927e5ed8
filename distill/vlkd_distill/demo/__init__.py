"""The demo world: captioned pictures of sixteen things in five styles, drawn by numpy and Pillow alone.

A data set for domain generalisation, a source of image-text pairs and an offline text-to-image synthesiser in
one, with a tiny CLIP (`TEACHER_FOLDER`) that was trained on it. A stand-in, for trying everything without a
download: figures on it say nothing about real photographs. It shows how the parts work together.
"""

from __future__ import annotations

from pathlib import Path

from .attributes import ATTRIBUTES
from .captions import STYLE_WORDS, caption
from .render import contact_sheet, render
from .scene import BACKGROUNDS, CLASSES, COLOURS, FACINGS, SIZES, STYLES, TYPICAL, Scene, sample_scene
from .world import write_world

TEACHER_FOLDER = Path(__file__).parent / "teacher"
"""Where the tiny CLIP lies; load it as `local-dir:<this path>` with open_clip."""

__all__ = [
    "ATTRIBUTES",
    "BACKGROUNDS",
    "CLASSES",
    "COLOURS",
    "FACINGS",
    "SIZES",
    "STYLES",
    "STYLE_WORDS",
    "TEACHER_FOLDER",
    "TYPICAL",
    "Scene",
    "caption",
    "contact_sheet",
    "render",
    "sample_scene",
    "write_world",
]
