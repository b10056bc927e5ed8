"""The forms a teacher's name can have, checked without loading anything."""

from __future__ import annotations

from pathlib import Path

from vlkd_runtime.errors import ConfigError

DEMO = "demo"
_DEMO_FOLDER = Path(__file__).parent / "demo" / "teacher"


def folder_of(name: str) -> Path | None:
    """The folder a teacher's files lie in; None for one that a hub names."""
    if name == DEMO:
        return _DEMO_FOLDER
    return Path(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else None


def check_name(name: str) -> None:
    """Refuse a teacher name of unknown form, or a folder that is not there, before any long work.

    Raises:
        ConfigError: as said.
    """
    if name == DEMO:
        return
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            msg = (
                f"Expected an open_clip model folder with open_clip_config.json at {folder}, found "
                f"{'other files' if folder.is_dir() else 'nothing'}. Set teacher.model to local-dir:<folder>."
            )
            raise ConfigError(msg)
    elif ":" not in name or name.endswith(":"):
        msg = (
            f"The teacher '{name}' has no known form. Expected 'demo', 'local-dir:<folder>' or "
            "'<architecture>:<pretrained tag>' as in 'ViT-B-16:laion2b_s34b_b88k'."
        )
        raise ConfigError(msg)


def open_clip_names(name: str) -> tuple[str, str | None]:
    """Architecture and pretrained tag as open_clip takes them."""
    if name == DEMO:
        return f"local-dir:{_DEMO_FOLDER}", None
    if name.startswith(("local-dir:", "hf-hub:")):
        return name, None
    architecture, _, tag = name.partition(":")
    return architecture, tag
