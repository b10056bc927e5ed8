"""How ``compress`` understands a classifier from elsewhere: its input's form, its classes, its images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlkd_bench.samples import Sample
from vlkd_compress.adopt import NORMALISATIONS, Adopted, InputForm, adopt, is_student
from vlkd_compress.calibration import MINIMUM_IMAGES, select_calibration
from vlkd_compress.graph import load
from vlkd_distill.data import DomainDataset, content_key
from vlkd_runtime import Classifier
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

from .stages import StageResult, Workspace, versions

if TYPE_CHECKING:
    from .compressing import Request

DETECTION_IMAGES = 96


def check_form(request: Request) -> None:
    """Refuse what contradicts itself before anything is read."""
    given = bool(request.mean or request.std)
    if given and request.normalise:
        msg = "Expected either --normalise or --mean with --std, found both: leave one out."
        raise ConfigError(msg)
    if request.normalise not in ("", "auto", *NORMALISATIONS):
        known = ", ".join(("auto", *NORMALISATIONS))
        msg = f"Expected --normalise to be one of {known}, found '{request.normalise}'."
        raise ConfigError(msg)
    spec_of(request, 1, 1)


def spec_of(request: Request, height: int, width: int) -> PreprocessSpec:
    """How images are prepared for a classifier of this size."""
    return PreprocessSpec(
        height,
        width,
        request.resize,  # type: ignore[arg-type]  # the constructor refuses any other text
        request.crop_fraction,
        request.interpolation,  # type: ignore[arg-type]
        request.jpeg_scale,
    )


def adopted_model(
    request: Request, dataset: DomainDataset, usable: Sequence[Sample], workspace: Workspace
) -> tuple[StageResult, Adopted, str]:
    """The classifier in this project's form, and a sentence on how its input was understood."""
    source = load(request.model)
    data = request.model.read_bytes()
    names = {"": "given as mean and std" if request.mean else "not needed"}.get(
        request.normalise, request.normalise
    )
    asked = {
        name: getattr(request, name)
        for name in ("normalise", "mean", "std", "layout", "bgr", "output", "size", "resize")
    }

    def work(folder: Path) -> None:
        form, said = None, "uint8 images, normalised inside the graph"
        if not is_student(source):
            form, said = _form(request, dataset, usable)
        adopted = adopt(request.model, folder / "model.onnx", form, output=request.output)
        _check_classes(adopted, dataset, request)
        told = dataclasses.asdict(adopted) | {"input": said}
        write_text(folder / "adopted.json", json.dumps(told, indent=1))

    inputs = {
        "model": hashlib.sha256(data).hexdigest(),
        "asked": asked,
        "as": names,
        "classes": list(dataset.classes),
    }
    if request.normalise == "auto":
        inputs["images"] = content_key(_for_detection(usable))
        # The size is the model's.
        inputs["preprocess"] = spec_of(request, 1, 1).to_json()
    stage = workspace.stage("adopt", inputs | versions("onnx", "onnxruntime", "vlkd-edge"), work)
    told = json.loads((stage.folder / "adopted.json").read_text())
    said = told.pop("input")
    return stage, Adopted(**(told | {"changed": tuple(told["changed"])})), said


def _form(request: Request, dataset: DomainDataset, usable: Sequence[Sample]) -> tuple[InputForm, str]:
    if request.mean or request.std:
        return request.form(request.mean, request.std), f"mean {request.mean}, std {request.std}, as given"
    if request.normalise in NORMALISATIONS:
        return request.form(*NORMALISATIONS[request.normalise]), f"'{request.normalise}', as given"
    if request.normalise != "auto":
        msg = (
            f"{request.model} takes images as floating-point numbers, and a graph does not say how they are "
            f"normalised. Give --normalise ({', '.join(NORMALISATIONS)}), or --mean and --std for pixel values from "
            "0 to 255; or --normalise auto to try the known ones on labelled images of the source domains."
        )
        raise ConfigError(msg)
    return _detect(request, dataset, usable)


def _detect(request: Request, dataset: DomainDataset, usable: Sequence[Sample]) -> tuple[InputForm, str]:
    """Try each known normalisation on source images; take the one under which the true classes are likeliest.

    Raises:
        ConfigError: under none of them is the model clearly better than chance.
    """
    samples = _for_detection(usable)
    labels = np.asarray([sample.label for sample in samples])
    scores: dict[str, tuple[float, float]] = {}
    forms = {name: request.form(*values) for name, values in NORMALISATIONS.items()}
    with tempfile.TemporaryDirectory(prefix="vlkd-adopt-") as folder:
        for name, form in forms.items():
            trial = Path(folder) / f"{name}.onnx"
            adopted = adopt(request.model, trial, form, output=request.output)
            _check_classes(adopted, dataset, request)
            spec = spec_of(request, adopted.height, adopted.width)
            images = np.stack([prepare(sample.path, spec) for sample in samples])
            with Classifier.from_model(trial, spec, dataset.classes, logit_scale=1.0) as classifier:
                logits = classifier.infer(images).logits.astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            likely = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(axis=1))
            scores[name] = float(likely.mean()), float((logits.argmax(axis=1) == labels).mean())
    # Of two that do equally well either will do: by construction they hardly differ on these images.
    best = max(scores, key=lambda name: scores[name][0])
    table = ", ".join(f"{name} {accuracy:.1%}" for name, (_, accuracy) in scores.items())
    if scores[best][1] < clear_of_chance(len(dataset.classes), len(samples)):
        msg = (
            f"Cannot tell how {request.model} wants its input: with no known normalisation it is clearly better than "
            f"chance on {len(samples)} source images ({table}). Give --normalise, or --mean and --std; and check that "
            "the classes are in the order of the logits (--classes)."
        )
        raise ConfigError(msg)
    return forms[best], f"'{best}', detected on {len(samples)} labelled source images ({table})"


def clear_of_chance(classes: int, images: int) -> float:
    """Accuracy that hardly any guessing reaches: three standard deviations above its mean, and two images at least."""
    chance = 1 / classes
    return max(chance + 3 * math.sqrt(chance * (1 - chance) / images), 2 / images)


def _for_detection(usable: Sequence[Sample]) -> tuple[Sample, ...]:
    count = min(DETECTION_IMAGES, len(usable))
    return select_calibration(usable, max(count, MINIMUM_IMAGES), seed=0, forbidden_domains=())


def _check_classes(adopted: Adopted, dataset: DomainDataset, request: Request) -> None:
    if adopted.classes != len(dataset.classes):
        msg = (
            f"{request.model} has {adopted.classes} logits, and {request.data} has {len(dataset.classes)} classes "
            f"({', '.join(dataset.classes[:6])}{', ...' if len(dataset.classes) > 6 else ''}): expected one for each, "
            "in the same order. Name the folders of all classes in the order of the logits with --classes."
        )
        raise DataError(msg)
