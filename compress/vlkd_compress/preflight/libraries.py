"""Finds TensorRT for RTX among the installed packages and arranges it as TensorRT's Python module expects.

The module links against libraries by the names they have in TensorRT proper; TensorRT for RTX has the same
interface under other names. A folder of links, put first in the loader's path, joins the two.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from vlkd_runtime.errors import UnavailableError

from .elf import library_returning_true, needed_libraries, soname

ENGINE_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
BINDINGS_PACKAGE = "tensorrt_bindings"
INSTALL = "pip install 'vlkd-edge[build]'"


@dataclass(frozen=True, slots=True)
class Libraries:
    """Where the parts of TensorRT for RTX lie.

    Attributes:
        builder: the library with builder and runtime.
        parser: the library with the ONNX parser.
        bindings: the native part of TensorRT's Python module.
        version: version of the builder, from its file name.
    """

    builder: Path
    parser: Path
    bindings: Path
    version: str


def find_libraries() -> Libraries:
    """Look for the packages without importing them (importing one changes the loader's path).

    Raises:
        UnavailableError: this is no Linux on x86-64, or a package or one of its files is missing.
    """
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in ("x86_64", "AMD64"):
        msg = (
            f"TensorRT for RTX is packaged for Linux on x86-64, this is {sys.platform} on {machine}: run the "
            f"preflight on such a machine, after {INSTALL}"
        )
        raise UnavailableError(msg)
    engine, bindings = _package_folder(ENGINE_PACKAGE), _package_folder(BINDINGS_PACKAGE)
    builder = _newest(engine, "libtensorrt_rtx.so.*")
    return Libraries(
        builder=builder,
        parser=_newest(engine, "libtensorrt_onnxparser_rtx.so.*"),
        bindings=_newest(bindings, "tensorrt*.so"),
        version=builder.name.partition(".so.")[2],
    )


def arrange(libraries: Libraries, folder: Path) -> None:
    """Fill a folder with links under each name by which the module, or TensorRT itself, asks for a library.

    Raises:
        UnavailableError: the module asks for a TensorRT library that TensorRT for RTX has no match for.
    """
    for library in (libraries.builder, libraries.parser):
        name = soname(library)
        _link(folder / name, library)
        _link(folder / f"{name.partition('.so')[0]}.so", library)  # the name TensorRT itself looks up
    for name in needed_libraries(libraries.bindings):
        if name.startswith("libnvinfer_plugin."):
            (folder / name).write_bytes(library_returning_true(name, "initLibNvInferPlugins"))
        elif name.startswith("libnvinfer."):
            _link(folder / name, libraries.builder)
        elif name.startswith("libnvonnxparser."):
            _link(folder / name, libraries.parser)
        elif name.startswith("libnv"):
            msg = f"{libraries.bindings} asks for {name}, which TensorRT for RTX has no match for: {INSTALL}"
            raise UnavailableError(msg)


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        msg = f"The package {package} is not installed: {INSTALL}"
        raise UnavailableError(msg)
    return Path(next(iter(found.submodule_search_locations)))


def _newest(folder: Path, pattern: str) -> Path:
    files = [path for path in folder.glob(pattern) if path.is_file()]
    if not files:
        msg = (
            f"Expected a file {pattern} in {folder}, found none: the package is damaged or changed; {INSTALL}"
        )
        raise UnavailableError(msg)
    # The wheel holds one full version number; its importer may have added links with shorter ones.
    return max(files, key=lambda path: (len(_numbers(path.name)), _numbers(path.name)))


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", name.partition(".so")[2]))


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target)
