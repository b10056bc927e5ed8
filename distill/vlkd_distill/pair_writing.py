"""Two towers of a CLIP-like model as an ONNX pair, checked against the model before it has its name.

Letters used in shapes: N images or texts, D embedding size, H and W pixels, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from torch import Tensor, nn

from vlkd_runtime.atomic import atomic_folder
from vlkd_runtime.errors import ParityError, UnavailableError, first_line

from .losses import unit
from .onnx_pair import OnnxPairTeacher, PairSpec
from .quiet import quiet

OPSET = 20
TEXTS = ("a photo of a cat", "A sketch, of two Dogs!", "x")
"""What a pair is asked about to be checked."""

Reference = Callable[[Sequence[Image.Image], Sequence[str]], tuple[Tensor, Tensor]]
"""The model itself: embeddings of images and of texts, ``(N, D)`` each."""

# Of unit rows; float32 on two engines differs by 1e-6, a wrong pixel or token by more than this.
_TOLERANCE = 1e-4
# What one protobuf message can hold is 2 GiB; above, the weights go into a file beside the graph.
_LARGEST_BYTES = 2_000_000_000


class _Tower(nn.Module):
    """One encoder of a model as a module of its own, with unit rows."""

    def __init__(self, model: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._encode = encode

    def forward(self, batch: Tensor) -> Tensor:
        """Embed ``(N, ...)``: unit rows ``(N, D)``."""
        return unit(self._encode(batch))


def write_pair(
    folder: Path,
    spec: PairSpec,
    model: nn.Module,
    encoders: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    reference: Reference,
    tokenizer: str | None,
) -> None:
    """Write both towers of a model in torch.

    Args:
        folder: where the pair shall lie; nothing may be there.
        spec: how images and texts are prepared.
        model: holds the weights of both.
        encoders: from pixels ``(N, 3, H, W)`` and from tokens ``(N, L)`` to embeddings ``(N, D)``.
        reference: what the pair is held to.
        tokenizer: content of ``tokenizer.json``; None where the spec names another.

    Raises:
        UnavailableError: a tower cannot be exported.
        ParityError: the pair disagrees with the model.
    """
    examples = (
        torch.zeros(2, 3, spec.height, spec.width),
        torch.ones(2, spec.context_length, dtype=torch.int64),
    )
    with atomic_folder(folder) as place:
        for name, encode, example in zip(("image", "text"), encoders, examples, strict=True):
            _export(_Tower(model, encode).eval(), example, place / f"{name}.onnx", spec.name)
        (place / "teacher.json").write_text(spec.to_json(), encoding="utf-8")
        if tokenizer is not None:
            (place / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        check_pair(place, spec, reference)


def _export(tower: nn.Module, example: Tensor, path: Path, name: str) -> None:
    """Write one tower with a free number of rows."""
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                tower,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["batch"],
                # Not "embedding": SigLIP has a value of that name inside, and onnxscript does not rename it.
                output_names=["teacher_embedding"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
    except Exception as error:
        msg = (
            f"The {path.stem} tower of '{name}' cannot be exported to ONNX: {first_line(error)}. Export it by "
            'other means and use teacher.model = "onnx-pair:<folder>".'
        )
        raise UnavailableError(msg) from error
    assert program is not None
    weights = sum(value.numel() * value.element_size() for value in tower.state_dict().values())
    program.save(str(path), external_data=weights > _LARGEST_BYTES)
    strip(path)
    onnx.checker.check_model(str(path))


def strip(path: Path) -> None:
    """Drop the traces of this machine's files: the same model gives the same graph and fingerprint."""
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def check_pair(
    folder: Path,
    spec: PairSpec,
    reference: Reference,
) -> None:
    """Compare a pair with its model, through preprocessing and tokens, on images of odd sizes.

    Raises:
        ParityError: they disagree.
    """
    images = odd_images(spec)
    pair = OnnxPairTeacher(spec.name, folder)
    with torch.inference_mode():
        expected = [unit(rows).numpy() for rows in reference(images, TEXTS)]
    found = (pair.embed_images(images), pair.embed_texts(TEXTS))
    for kind, mine, theirs in zip(("image", "text"), found, expected, strict=True):
        gap = float(np.abs(mine - theirs).max())
        if not gap <= _TOLERANCE:
            msg = (
                f"The exported {kind} tower of '{spec.name}' gives other embeddings than the model: they differ by "
                f"{gap:.3g}, tolerated is {_TOLERANCE:g}. Its preprocessing, tokenizer or graph was not written "
                "down rightly: report it with the model's name."
            )
            raise ParityError(msg)


def odd_images(spec: PairSpec) -> tuple[Image.Image, ...]:
    """Smooth noise, wide and tall, with odd margins: a crop that starts one pixel off shows."""
    rng = np.random.default_rng(0)
    sizes = ((spec.width * 2 + 31, spec.height + 6), (spec.width + 3, spec.height * 2 + 9))
    return tuple(
        Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize(size) for size in sizes
    )
