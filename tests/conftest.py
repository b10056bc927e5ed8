"""What every test gets, a cache of its own run, so that nothing is taken from or left in the user's; and a teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        folder.chmod(0o700)
        patch.setenv("VLKD_CACHE", str(folder))
        yield


@pytest.fixture
def untrained_clip() -> Callable[[Path], str]:
    """Writes a CLIP that has learned nothing into a folder; its towers take prompts. Gives its name as a teacher."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    def write(folder: Path) -> str:
        folder.mkdir()
        vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
        text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
        parts = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": parts, "preprocess_cfg": {}}))
        torch.manual_seed(1)
        save_file(open_clip.model.CLIP(8, vision, text).state_dict(), folder / "open_clip_model.safetensors")
        return f"local-dir:{folder}"

    return write
