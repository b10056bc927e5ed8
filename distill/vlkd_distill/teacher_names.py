"""The forms a teacher's name can have, checked and identified without loading anything.

======================================  ==============================================================
``demo``                                the embedded stand-in
``local-dir:<folder>``                  a folder in open_clip's format
``<architecture>:<pretrained tag>``     a model that open_clip knows, fetched from a hub
``onnx-pair:<folder>``                  ``image.onnx``, ``text.onnx`` and ``teacher.json``
``store:<file or folder>``              embeddings somebody computed before, as safetensors
``call:<module>:<attribute>``           a Python object of the user's; or ``<image function>,<text function>``
``hf-dir:<folder>``, ``hf:<model id>``  a CLIP or SigLIP of transformers or optimum, as an ONNX pair
======================================  ==============================================================
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeAlias

from vlkd_runtime.errors import ConfigError, UnavailableError

Form: TypeAlias = Literal["demo", "local-dir", "onnx-pair", "store", "call", "hf-dir", "hf", "open-clip"]

DEMO = "demo"
PAIR_FILES = ("image.onnx", "text.onnx", "teacher.json")
OPTIMUM_GRAPH = "model.onnx"
"""Both towers of a CLIP-like model, as optimum exports it into a folder of transformers."""
HF_INSTALL = "pip install 'vlkd-edge[optimum]'"
_DEMO_FOLDER = Path(__file__).parent / "demo" / "teacher"
_PREFIXED: tuple[Form, ...] = ("local-dir", "onnx-pair", "store", "call", "hf-dir", "hf")
_HF_OLDEST = (4, 56)  # the first that is told its precision as later ones are
_IN_FOLDERS = ("local-dir", "onnx-pair", "hf-dir")


def form_of(name: str) -> Form:
    """Tell the form of a name.

    Raises:
        ConfigError: it has none of the forms above.
    """
    if name == DEMO:
        return "demo"
    for form in _PREFIXED:
        if name.startswith(f"{form}:"):
            return form
    if ":" not in name or name.startswith(":") or name.endswith(":"):
        msg = (
            f"The teacher '{name}' has no known form. Expected 'demo', 'local-dir:<folder>', "
            "'<architecture>:<pretrained tag>' as in 'ViT-B-16:laion2b_s34b_b88k', 'onnx-pair:<folder>', "
            "'store:<file or folder>', 'call:<module>:<attribute>', 'hf-dir:<folder>' or 'hf:<model id>'."
        )
        raise ConfigError(msg)
    return "open-clip"


def is_counted(name: str, budget: int | None) -> bool:
    """Whether questions to a teacher are counted: a budget is set, or it is somebody's code. A store asks nobody.

    Raises:
        ConfigError: as `form_of`.
    """
    form = form_of(name)
    return form == "call" or (budget is not None and form != "store")


def folder_of(name: str) -> Path | None:
    """The folder a teacher's files lie in; None for one that a hub names, a store and a callable."""
    if name == DEMO:
        return _DEMO_FOLDER
    form, _, rest = name.partition(":")
    return Path(rest) if form in _IN_FOLDERS else None


def check_name(name: str) -> None:
    """Refuse a teacher name of unknown form, or files that are not there, before any long work.

    Raises:
        ConfigError: as said.
        UnavailableError: the form needs a package that is not installed.
    """
    form = form_of(name)
    rest = name.partition(":")[2]
    if form == "local-dir":
        _need_files(form, Path(rest), ("open_clip_config.json",), "an open_clip model folder")
    elif form == "onnx-pair":
        _need_files(form, Path(rest), PAIR_FILES, "an ONNX pair")
    elif form == "hf-dir":
        _need_files(form, Path(rest), ("config.json",), "a transformers model folder")
        if not any(Path(rest).glob("*.safetensors")) and not exported_by_optimum(rest):
            msg = (
                f"Expected weights as *.safetensors in {rest}, or optimum's {OPTIMUM_GRAPH}, found neither. Pickled "
                "weights (pytorch_model.bin) are never read: convert them with save_pretrained of transformers."
            )
            raise ConfigError(msg)
    elif form == "hf" and not rest.strip("/ "):
        msg = f"The teacher '{name}' names no model. Expected 'hf:<model id>' as in 'hf:google/siglip-base'."
        raise ConfigError(msg)
    elif form == "store":
        store_files(rest)
    elif form == "call":
        _find_module(call_parts(name)[0].split(".")[0])  # of a submodule, this would import its parents
    if form in ("hf", "hf-dir"):
        check_transformers(f"The teacher '{name}'")


def exported_by_optimum(folder: str) -> bool:
    """Whether a folder of transformers has no weights, and the graph that optimum writes."""
    place = Path(folder)
    return (place / OPTIMUM_GRAPH).is_file() and not any(place.glob("*.safetensors"))


def check_transformers(who: str) -> None:
    """Refuse where transformers is missing or too old; nothing is imported.

    Raises:
        UnavailableError: as said, with the extra to install.
    """
    try:
        found = version("transformers")
    except PackageNotFoundError:
        msg = f"{who} needs transformers, which is not installed: {HF_INSTALL}."
        raise UnavailableError(msg) from None
    numbers = tuple(int(word) for word in found.split(".")[:2] if word.isdecimal())
    if numbers < _HF_OLDEST:
        oldest = ".".join(map(str, _HF_OLDEST))
        msg = f"{who} needs transformers {oldest} or newer, found {found}: {HF_INSTALL}."
        raise UnavailableError(msg)


def open_clip_names(name: str) -> tuple[str, str | None]:
    """Architecture and pretrained tag as open_clip takes them."""
    if name == DEMO:
        return f"local-dir:{_DEMO_FOLDER}", None
    if name.startswith(("local-dir:", "hf-hub:")):
        return name, None
    architecture, _, tag = name.partition(":")
    return architecture, tag


def store_files(place: str) -> tuple[Path, ...]:
    """The files of a store: the file itself, or all ``*.safetensors`` of a folder by name.

    Raises:
        ConfigError: there are none.
    """
    path = Path(place)
    files = (path,) if path.is_file() else tuple(sorted(path.glob("*.safetensors")))
    if not place or not files:
        found = "a folder without any" if place and path.is_dir() else "nothing"
        msg = (
            f"Expected a safetensors file of embeddings, or a folder of them, at '{place}', found {found}. "
            "Write one with vlkd_distill.teacher_export.write_store and set teacher.model to store:<file>."
        )
        raise ConfigError(msg)
    return files


def call_parts(name: str) -> tuple[str, tuple[str, ...]]:
    """Module and attributes of ``call:<module>:<attribute>`` or ``call:<module>:<image>,<text>``.

    Raises:
        ConfigError: the name has another form.
    """
    module, _, attributes = name.removeprefix("call:").partition(":")
    named = tuple(attributes.split(","))
    parts = [*module.split("."), *(part for attribute in named for part in attribute.split("."))]
    if len(named) > 2 or not all(part.isidentifier() for part in parts):
        msg = (
            f"The teacher '{name}' has no known form. Expected 'call:<module>:<attribute>' for an object with "
            "embed_images and embed_texts, or 'call:<module>:<image function>,<text function>'."
        )
        raise ConfigError(msg)
    return module, named


def teacher_key(name: str) -> str:
    """Identity of a teacher without loading it: the content of its files, or the name a hub knows.

    Of a callable it is the name with the content of its module's file: what the module imports or asks over
    a network is not seen.

    Raises:
        ConfigError: as `check_name`.
    """
    folder = folder_of(name)
    if folder is not None:
        return content_key(sorted(path for path in folder.iterdir() if path.is_file()))
    form = form_of(name)
    if form == "store":
        return content_key(store_files(name.removeprefix("store:")))
    return f"{name}@{module_key(call_parts(name)[0])}" if form == "call" else name


def content_key(files: Sequence[Path]) -> str:
    """Hash of names and contents of files."""
    digests = [(path.name, _file_digest(path)) for path in files]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def module_key(module: str) -> str:
    """Hash of a module's source file; empty for one without a file.

    Raises:
        ConfigError: there is no such module.
    """
    spec = _find_module(module)
    origin = Path(spec.origin) if spec.origin else None
    return content_key([origin]) if origin is not None and origin.is_file() else ""


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _need_files(form: str, folder: Path, names: Sequence[str], what: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        found = "other files" if folder.is_dir() else "nothing"
        msg = (
            f"Expected {what} with {', '.join(missing)} at {folder}, found {found}. "
            f"Set teacher.model to {form}:<folder>."
        )
        raise ConfigError(msg)


def _find_module(module: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # looking for a submodule imports its parents, which may do anything
        spec = None
    if spec is None:
        msg = (
            f"Expected a Python module '{module}' for the teacher 'call:<module>:...', found none. Install it, or "
            "set PYTHONPATH to the folder it lies in."
        )
        raise ConfigError(msg)
    return spec
