"""The ``export`` verb: a bundle's graph for other tools, each checked against what the bundle answers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console

from vlkd_runtime.atomic import atomic_folder, write_bytes
from vlkd_runtime.bundle import Bundle
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError
from vlkd_runtime.preprocess import PreprocessSpec

if TYPE_CHECKING:
    import onnx

    from vlkd_compress.interface import Interface

Format = Literal["onnx", "optimum", "torch-tensorrt"]
# A graph that only changed its interface rounds as before; other kernels for other batches may round otherwise.
TOLERATED_SHARE = 1e-3
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers, which the image processors take


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be exported.

    Attributes:
        source: a bundle, as folder or archive, or the output folder of a build.
        out: file or folder to write.
        form: for which tool.
        opset: ONNX opset; the graph's own when None.
        batch: images a run, ``N``, or the range of them, ``smallest:usual:largest``.
        layout: ``nhwc`` or ``nchw``.
        precision: of a ``torch-tensorrt`` engine.
    """

    source: Path
    out: Path
    form: Format
    opset: int | None
    batch: str
    layout: Literal["nhwc", "nchw"]
    precision: Literal["float32", "float16"]


def export(request: Request, as_json: bool, console: Console) -> int:
    """Write it and print what was written.

    Raises:
        UsageError: no such source, an impossible request, or a package that is missing.
        RefusalError: the graph cannot be brought there, or it would answer otherwise.
    """
    needed = "torch_tensorrt" if request.form == "torch-tensorrt" else "onnx"
    if importlib.util.find_spec(needed) is None:
        extra = "torch-tensorrt" if request.form == "torch-tensorrt" else "build"
        msg = f"This export needs the package {needed}, which is not installed: pip install 'vlkd-edge[{extra}]'"
        raise UnavailableError(msg)
    if request.form == "torch-tensorrt":
        from .torch_export import export_torch_tensorrt

        answer = export_torch_tensorrt(request.source, request.out, request.batch, request.precision)
    elif request.form == "optimum":
        answer = _export_optimum(request)
    else:
        answer = _export_onnx(request)
    if as_json:
        print(json.dumps(answer))
    else:
        for key, value in answer.items():
            console.print(f"{key:<10}{value}", markup=False, highlight=False, soft_wrap=True)
    return 0


def find_bundle(source: Path) -> Bundle:
    """Open the bundle at a path, or the one a build left in its output folder."""
    inside = source / "bundle"
    return Bundle.open(inside if source.is_dir() and inside.is_dir() else source)


def _export_onnx(request: Request) -> dict[str, Any]:
    from vlkd_compress.interface import Interface

    bundle = find_bundle(request.source)
    wanted = Interface(request.opset, _batch(request.batch), request.layout)
    model, gap = _changed(bundle, wanted)
    write_bytes(request.out, model.SerializeToString(deterministic=True))
    return _answer(request, bundle, model, gap)


def _export_optimum(request: Request) -> dict[str, Any]:
    """Write a folder that ``ORTModelForImageClassification`` and an image-classification pipeline load.

    The input is called as transformers calls it and takes float pixels from 0 to 255, any number of images;
    normalisation stays inside, so that the image processor has nothing to do but to resize.
    """
    from vlkd_compress.interface import Interface, Profile

    if request.batch != "1" or request.layout != "nhwc":
        msg = (
            "Expected no --batch and no --layout with --format optimum: it takes any number of images, "
            "channels first."
        )
        raise ConfigError(msg)
    bundle = find_bundle(request.source)
    wanted = Interface(request.opset, Profile(1, 1, 8), "nchw", float_input=True, input_name="pixel_values")
    model, gap = _changed(bundle, wanted)
    with atomic_folder(request.out) as folder:
        for name, content in (
            ("config.json", optimum_config(bundle)),
            ("preprocessor_config.json", optimum_processor(bundle.manifest.preprocess)),
        ):
            (folder / name).write_text(
                json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return _answer(request, bundle, model, gap)


def optimum_config(bundle: Bundle) -> dict[str, Any]:
    """The ``config.json`` beside the graph; its class is a place for label names, no network is made of it."""
    classes = bundle.manifest.classes
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": 3,
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
        "vlkd": {"name": bundle.manifest.name, "digest": bundle.manifest.digest},
    }


def optimum_processor(spec: PreprocessSpec) -> dict[str, Any]:
    """The ``preprocessor_config.json``: the bundle's resize, and no rescaling or normalisation.

    The image processors resize in one pass and round a crop's sizes otherwise than the bundle's specification, so
    that pixels may differ by a level or two. They decode JPEGs whole: where the bundle has a ``jpeg_scale``, pixels
    differ by more.
    """
    common: dict[str, Any] = {
        "do_rescale": False,
        "do_normalize": False,
        "do_convert_rgb": True,
        "do_resize": True,
    }
    common |= {"resample": RESAMPLE[spec.interpolation]}
    if spec.resize == "squash":
        size = {"height": spec.height, "width": spec.width}
        return {"image_processor_type": "ViTImageProcessor", "size": size, **common}
    if spec.height != spec.width:
        msg = f"Expected a square crop, found {spec.height} x {spec.width}: transformers has no processor for it."
        raise ConfigError(msg)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": int(spec.height / spec.crop_fraction)},
        "do_center_crop": True,
        "crop_size": {"height": spec.height, "width": spec.width},
        **common,
    }


def _changed(bundle: Bundle, wanted: Interface) -> tuple[onnx.ModelProto, float]:
    import onnx

    from vlkd_compress.interface import change, check_same

    model = onnx.load_from_string(bundle.model)
    changed = change(model, wanted)
    images: npt.NDArray[np.uint8] = bundle.golden.images
    tolerated = TOLERATED_SHARE * bundle.manifest.logit_scale
    return changed, check_same(model, changed, wanted, images, max_logit_gap=tolerated)


def _batch(text: str) -> Any:
    from vlkd_compress.preflight.checks import parse_profile

    if text.isdigit() and 1 <= int(text) <= 65536:
        return int(text)
    found = parse_profile(text)
    if isinstance(found, str):
        msg = f"--batch: expected a number of images, or {found.removeprefix('expected ')}."
        raise ConfigError(msg)
    return found


def _answer(request: Request, bundle: Bundle, model: onnx.ModelProto, gap: float) -> dict[str, Any]:
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    files = list(_sizes(request.out))
    return {
        "format": request.form,
        "written": str(request.out),
        "bundle": bundle.manifest.digest,
        "opset": opset,
        "input": _shape(model),
        "parity": {"images": len(bundle.golden.images), "largest_gap": gap},
        "bytes": sum(size for _, size in files),
        "stand_in": bundle.manifest.stand_in,
    }


def _sizes(path: Path) -> Iterator[tuple[str, int]]:
    if path.is_file():
        yield path.name, path.stat().st_size
        return
    if not path.is_dir():
        msg = f"Expected an export at {path}, found nothing: run it again."
        raise DataError(msg)
    for file in sorted(path.iterdir()):
        yield file.name, file.stat().st_size


def _shape(model: onnx.ModelProto) -> str:
    value = model.graph.input[0]
    kind = {1: "float32", 2: "uint8"}.get(value.type.tensor_type.elem_type, "?")
    dims = ", ".join(str(dim.dim_value or dim.dim_param) for dim in value.type.tensor_type.shape.dim)
    return f"{value.name} {kind} ({dims})"
