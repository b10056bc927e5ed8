"""The devices a bundle can be built for, as data.

What is assumed of a device holds until the device itself says otherwise: a JetPack can be upgraded in place, so
whatever builds an engine asks the TensorRT it finds.

References:
    NVIDIA Jetson module data sheets and JetPack release notes: compute capability, memory, accelerators.
    https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html: precisions.
    https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html: which
    TensorRT a JetPack may have.
    https://docs.nvidia.com/jetson/archives/r36.4/DeveloperGuide/SD/PlatformPowerAndPerformance.html: rails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "float16", "bfloat16", "int8", "float8", "float4"]
EngineKind = Literal["tensorrt", "tensorrt-rtx", "onnxruntime-cpu"]
DialectName = Literal["tensorrt-qdq", "onnxruntime-qdq"]

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class JetPack:
    """What one release of NVIDIA's system for Jetsons brings.

    Attributes:
        release: its version; later digits, as in 6.2.1, belong to it unless they have a row of their own.
        linux: its point releases, each as Jetson Linux in ``/etc/nv_tegra_release`` and as JetPack, oldest first.
        cuda: version of CUDA.
        tensorrt: version of TensorRT; empty where no document states it.
        python: the Python that its TensorRT module is for.
    """

    release: str
    linux: tuple[tuple[str, str], ...]
    cuda: str
    tensorrt: str
    python: str


_JETPACK_5_1 = (
    ("35.2.1", "5.1"),
    ("35.3.1", "5.1.1"),
    ("35.4.1", "5.1.2"),
    ("35.5.0", "5.1.3"),
    ("35.6", "5.1.4"),
)
JETPACKS: tuple[JetPack, ...] = (
    JetPack("4.6", (("32.6", "4.6"),), "10.2", "8.0.1", "3.6"),
    JetPack("4.6.1", (("32.7", "4.6.1"),), "10.2", "8.2.1", "3.6"),
    JetPack("5.0", (("35.1", "5.0.2"),), "11.4", "8.4.1", "3.8"),
    JetPack("5.1", _JETPACK_5_1, "11.4", "8.5.2", "3.8"),
    JetPack("6.0", (("36.2", "6.0"), ("36.3", "6.0")), "12.2", "8.6.2", "3.10"),
    JetPack("6.1", (("36.4.0", "6.1"), ("36.4.2", "6.1")), "12.6", "10.3", "3.10"),
    JetPack("6.2", (("36.4.3", "6.2"), ("36.4", "6.2.1")), "12.6", "10.3", "3.10"),
    JetPack("7.0", (("38.2", "7.0"),), "13.0", "10.13", "3.12"),
    JetPack("7.1", (("38.4", "7.1"),), "13.0", "10.13", "3.12"),
    JetPack("7.2", (("39.2", "7.2"),), "13.2", "", "3.12"),
)


def jetpack_of(linux: str) -> str:
    """Give the JetPack that brought a Jetson Linux such as ``36.4.3``, or "" for one that is not in the table."""
    known = dict(pair for jetpack in JETPACKS for pair in jetpack.linux)
    parts = linux.split(".")
    return next((known[key] for count in (3, 2) if (key := ".".join(parts[:count])) in known), "")


@dataclass(frozen=True, slots=True)
class Target:
    """A device family.

    Attributes:
        name: as given to ``--target``.
        title: for people.
        engine: what runs the graph there.
        compute_capability: CUDA compute capabilities of its GPUs; empty without one.
        jetpack: JetPack releases it can have, the assumed one first.
        tensorrt: versions of TensorRT it can have, the assumed one first.
        opset: ONNX opset that is written for it.
        newest_opset: newest opset that its parser reads and the tools here keep to.
        precisions: what its engine computes in.
        prefers: the precision that is tried first.
        dla_cores: deep learning accelerators of the largest module.
        memory_gib: DRAM of the smallest common module, shared with the system; of a desktop, the card's.
        reserved_gib: what the system keeps of it. An assumption: 8 GB boards show 7.4 to 7.6 GiB to programs,
            and a session without a desktop takes most of a further GiB.
        dialect: how quantized graphs are written.
        student: timm model that suits it.
        rails: names of its power rails, the one of the whole module first where it has one.
        alias_of: the target that this name stands for.
        legacy: no longer the aim of new work.
        note: what else to know.
    """

    name: str
    title: str
    engine: EngineKind
    compute_capability: tuple[str, ...]
    jetpack: tuple[str, ...]
    tensorrt: tuple[str, ...]
    precisions: tuple[Precision, ...]
    memory_gib: float
    dialect: DialectName
    opset: int = 20
    newest_opset: int = 20
    prefers: Precision = "int8"
    dla_cores: int = 0
    reserved_gib: float = 1.5
    student: str = "tf_efficientnet_lite0"
    rails: tuple[str, ...] = ()
    alias_of: str = ""
    legacy: bool = False
    note: str = ""

    @property
    def budget_bytes(self) -> int:
        """Memory that is left for building and running an engine."""
        return max(0, int((self.memory_gib - self.reserved_gib) * GIB))


_AMPERE: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8")
_BLACKWELL: tuple[Precision, ...] = (*_AMPERE, "float8", "float4")
_SMALL_RAILS = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
_ORIN_JETPACKS, _ORIN_TENSORRT = ("6.2", "6.1", "6.0", "5.1", "7.2"), ("10.3", "8.6.2", "8.5.2")


def _orin_nano(name: str, alias_of: str = "") -> Target:
    return Target(
        name=name,
        title="Jetson Orin Nano",
        engine="tensorrt",
        compute_capability=("8.7",),
        jetpack=_ORIN_JETPACKS,
        tensorrt=_ORIN_TENSORRT,
        precisions=_AMPERE,
        memory_gib=8.0,
        dialect="tensorrt-qdq",
        rails=_SMALL_RAILS,
        alias_of=alias_of,
        note="Planned for the 8 GB module; define a target with memory_gib = 4 for the small one.",
    )


TARGETS: tuple[Target, ...] = (
    _orin_nano("jetson", alias_of="jetson-orin-nano"),
    _orin_nano("jetson-orin-nano"),
    Target(
        name="jetson-orin-nx",
        title="Jetson Orin NX",
        engine="tensorrt",
        compute_capability=("8.7",),
        jetpack=_ORIN_JETPACKS,
        tensorrt=_ORIN_TENSORRT,
        precisions=_AMPERE,
        memory_gib=8.0,
        dialect="tensorrt-qdq",
        dla_cores=2,
        rails=_SMALL_RAILS,
        note="The 8 GB module has one accelerator core, the 16 GB module two.",
    ),
    Target(
        name="jetson-agx-orin",
        title="Jetson AGX Orin",
        engine="tensorrt",
        compute_capability=("8.7",),
        jetpack=_ORIN_JETPACKS,
        tensorrt=_ORIN_TENSORRT,
        precisions=_AMPERE,
        memory_gib=32.0,
        dialect="tensorrt-qdq",
        dla_cores=2,
        student="resnet50",
        rails=("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"),
        note="No rail measures the whole module; sum them.",
    ),
    Target(
        name="jetson-agx-thor",
        title="Jetson AGX Thor",
        engine="tensorrt",
        compute_capability=("11.0",),
        jetpack=("7.1", "7.0", "7.2"),
        tensorrt=("10.13",),
        precisions=_BLACKWELL,
        memory_gib=128.0,
        dialect="tensorrt-qdq",
        student="resnet50",
        rails=("VIN", "VDD_GPU", "VDD_CPU_SOC_MSS"),
        note="TensorRT 10.13 ran FP8 and FP4 as float32 without saying so: read the engine inspector.",
    ),
    Target(
        name="jetson-xavier",
        title="Jetson Xavier",
        engine="tensorrt",
        compute_capability=("7.2",),
        jetpack=("5.1", "4.6.1"),
        tensorrt=("8.5.2", "8.2.1"),
        precisions=("float32", "float16", "int8"),
        memory_gib=8.0,
        dialect="tensorrt-qdq",
        opset=17,
        newest_opset=17,
        dla_cores=2,
        rails=("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"),
        legacy=True,
        note="Its TensorRT builds INT8 from Q/DQ only with the INT8 and FP16 flags set.",
    ),
    Target(
        name="desktop-rtx",
        title="desktop RTX GPU, TensorRT for RTX",
        engine="tensorrt-rtx",
        compute_capability=("8.0", "8.6", "8.9", "12.0"),
        jetpack=(),
        tensorrt=(),
        precisions=("float32", "float16", "bfloat16", "int8"),
        memory_gib=8.0,
        dialect="tensorrt-qdq",
        prefers="float16",
        reserved_gib=1.0,
        student="resnet50",
        note="INT8 is for weights of linear layers there, not for convolutions.",
    ),
    Target(
        name="desktop-trt",
        title="desktop or server GPU, TensorRT",
        engine="tensorrt",
        compute_capability=("8.0", "8.6", "8.9", "9.0", "12.0"),
        jetpack=(),
        tensorrt=("11.4", "10.16"),
        precisions=_AMPERE,
        memory_gib=8.0,
        dialect="tensorrt-qdq",
        reserved_gib=1.0,
        student="resnet50",
        note="Cards from compute capability 8.9 on have FP8, from 12.0 on FP4: define a target for them.",
    ),
    Target(
        name="cpu-x86",
        title="x86-64 processor, ONNX Runtime",
        engine="onnxruntime-cpu",
        compute_capability=(),
        jetpack=(),
        tensorrt=(),
        precisions=("float32", "int8"),
        memory_gib=4.0,
        dialect="onnxruntime-qdq",
        reserved_gib=1.0,
    ),
    Target(
        name="cpu-arm",
        title="64-bit Arm processor, ONNX Runtime",
        engine="onnxruntime-cpu",
        compute_capability=(),
        jetpack=(),
        tensorrt=(),
        precisions=("float32", "int8"),
        memory_gib=2.0,
        dialect="onnxruntime-qdq",
        reserved_gib=0.5,
    ),
)
