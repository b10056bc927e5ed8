"""The devices a bundle can be built for, as data.

References:
    NVIDIA Jetson module data sheets and JetPack release notes (compute capability, JetPack to TensorRT).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from vlkd_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Target:
    """A device family.

    Attributes:
        name: as given to ``--target``.
        title: for people.
        compute_capability: CUDA compute capability of its GPU.
        jetpack: JetPack release whose TensorRT is assumed until the device says otherwise.
        tensorrt: that TensorRT.
        dla_cores: deep learning accelerator cores.
        dialect: how quantized graphs are written.
        alias_of: the target that this name stands for.
    """

    name: str
    title: str
    compute_capability: str
    jetpack: str
    tensorrt: str
    dla_cores: str
    dialect: str
    alias_of: str = ""


_ORIN_NANO = Target("jetson-orin-nano", "Jetson Orin Nano", "8.7", "6.2", "10.3", "0", "tensorrt-qdq")

TARGETS: tuple[Target, ...] = (
    Target(
        "jetson", "Jetson Orin Nano", "8.7", "6.2", "10.3", "0", "tensorrt-qdq", alias_of="jetson-orin-nano"
    ),
    _ORIN_NANO,
    Target("jetson-orin-nx", "Jetson Orin NX", "8.7", "6.2", "10.3", "1 to 2", "tensorrt-qdq"),
    Target("jetson-agx-orin", "Jetson AGX Orin", "8.7", "6.2", "10.3", "2", "tensorrt-qdq"),
    Target("jetson-agx-thor", "Jetson AGX Thor", "11.0", "7.1", "10.13", "0", "tensorrt-qdq"),
)


def find(name: str) -> Target:
    """The target of that name; an alias gives what it stands for.

    Raises:
        ConfigError: no such target.
    """
    by_name = {target.name: target for target in TARGETS}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        msg = f"Unknown target '{name}'. Expected one of {', '.join(by_name)}.{hint}"
        raise ConfigError(msg)
    target = by_name[name]
    return by_name[target.alias_of] if target.alias_of else target
