"""A small real bundle: an untrained student, exported and packed as a build does it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vlkd_distill import export, students
from vlkd_distill.methods import PromptKd
from vlkd_distill.specs import StudentSpec
from vlkd_distill.stages import Batch
from vlkd_edge import configfile, learn
from vlkd_edge.__main__ import main
from vlkd_edge.progress import Live
from vlkd_edge.stages import Workspace
from vlkd_runtime import Classifier, PreprocessSpec
from vlkd_runtime.bundle import pack, write_bundle
from vlkd_runtime.golden import Golden
from vlkd_runtime.manifest import GoldenTolerance, ManifestDraft, ModelSpec, Variant, variant_file
from vlkd_runtime.vectors import ClassVectors

SPEC = StudentSpec("resnet10t", 32, "none", 0, {"channels": [8, 16, 16, 32], "stem_width": 8})
VECTORS = ClassVectors(
    ("cat", "dog", "fish"),
    np.eye(3, 8, dtype=np.float32),
    (("a",), ("b",), ("c",)),
    ("{}",),
    "test",
    "0" * 64,
    10.0,
)


SMALL = PreprocessSpec(height=32, width=32)


def export_small(network: students.Deployable, vectors: ClassVectors, path: Path) -> Path:
    """Write a network as ONNX, as a build does it."""
    export.export(network, 32, path, metadata=export.describe(vectors, SMALL, SPEC.arch))
    return path


def pack_small(
    root: Path,
    model: Path,
    vectors: ClassVectors,
    precision: str = "float32",
    dialect: str = "onnx",
    further: Mapping[str, tuple[Path, str]] = MappingProxyType({}),
) -> Path:
    """Make a bundle of graphs that were exported so; its archive lies beside it.

    ``further`` gives the graph and the dialect of each further variant, whose name begins with its precision.
    """
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)

    def answers(graph: Path) -> tuple[Any, Any]:
        with Classifier.from_model(graph, SMALL, vectors.names, logit_scale=10.0) as classifier:
            outputs = classifier.infer(images)
        return outputs.embedding, outputs.logits

    exact = GoldenTolerance(0.9999, 0.01)
    first = ModelSpec(precision, dialect, export.OPSET, (1, 32, 32, 3), (1, 8), (1, 3))
    specs = {
        name: dataclasses.replace(first, precision=name.split("-")[0], dialect=kind)
        for name, (_, kind) in further.items()
    }
    draft = ManifestDraft(
        name="tiny",
        target="jetson-orin-nano",
        model=first,
        preprocess=SMALL,
        classes=vectors.names,
        logit_scale=10.0,
        golden=exact,
        stand_in="An untrained network stands in for a student.",
        further=tuple(Variant.further(name, spec, exact) for name, spec in specs.items()),
    )
    golden = Golden(images, *answers(model), {name: answers(graph) for name, (graph, _) in further.items()})
    files = {
        "model.onnx": model,
        **{variant_file(name): graph for name, (graph, _) in further.items()},
        "class_vectors.safetensors": vectors.to_bytes(),
        "golden.safetensors": golden.to_bytes(),
        "evidence.json": b"{}\n",
    }
    folder = write_bundle(root / "bundle", draft, files)
    pack(folder, root / "tiny.vlkd")
    return folder


@dataclass(frozen=True, slots=True)
class Small:
    """How small bundles are made, for tests that need one of their own."""

    spec: StudentSpec = SPEC
    preprocess: PreprocessSpec = SMALL
    vectors: ClassVectors = VECTORS
    export: Callable[..., Path] = export_small
    pack: Callable[..., Path] = pack_small


@pytest.fixture(scope="session")
def small() -> Small:
    """What makes small bundles."""
    return Small()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle folder; its archive lies beside it."""
    root = tmp_path_factory.mktemp("bundle")
    network = students.Deployable(students.create(SPEC, 8).eval(), students.FusedHead(VECTORS))
    return pack_small(root, export_small(network, VECTORS, root / "model.onnx"), VECTORS)


SMALL_BENCH = (
    "data.demo_images=20",
    "data.demo_held_out_images=25",
    "student.arch=resnet10t",
    "student.options={channels=[8, 16, 32, 64], stem_width=8}",
    "student.image_size=32",
    "student.pretrained=none",
    "distill.batch_norm=train",
    "distill.teacher_view=clean_cached",
    "distill.epochs=1",
    "distill.align_epochs=1",
    'distill.styles=["grey"]',
    "prompts.epochs=1",
    "prompts.shots=2",
)


@pytest.fixture(scope="session")
def demo_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage in which the demo world of `SMALL_BENCH` is drawn, which takes longer than to train on it."""
    root = tmp_path_factory.mktemp("world")
    config = configfile.load(configfile.DEMO, (), SMALL_BENCH)
    learn.dataset(learn.Learning(config, Workspace(root, root / "cache"), Live(Console(quiet=True))))
    (stage,) = root.glob("stages/data-*")
    return stage


Invoke = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Runs words with ``--json`` among them in this process: exit code, the printed object, what was said."""

    def run(*words: str | Path) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", ["vlkd-edge", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), json.loads(printed.out.strip().splitlines()[-1]), printed.err

    return run


@pytest.fixture
def bench(invoke: Invoke, request: pytest.FixtureRequest) -> Invoke:
    """Runs ``vlkd-edge bench VERB`` on a small demo: exit code, the printed object, what was said.

    With ``drawn`` the world lies in the folder already.
    """

    def run(verb: str, out: Path, *words: str, drawn: bool = False) -> tuple[int, dict[str, Any], str]:
        if drawn:
            world: Path = request.getfixturevalue("demo_world")
            shutil.copytree(world, out / "stages" / world.name)
        settings = [word for value in SMALL_BENCH for word in ("--set", value)]
        return invoke("bench", verb, "--json", "--out", out, *settings, *words)

    return run


TINY = (
    "student.arch=resnet10t",
    "student.options={channels=[8, 16, 32, 64], stem_width=8}",
    "student.image_size=32",
    "student.pretrained=none",
    "teacher.templates=['a {}']",
    "distill.batch_norm=train",
    "distill.teacher_view=clean_cached",
    "distill.epochs=1",
    "distill.align_epochs=1",
    "distill.batch=16",
    "distill.method=vl2v-adip",
)


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[..., Path]:
    """Writes noise as ``tmp_path/data/<domain>/<class>/<number>.png``."""

    def write(
        domains: tuple[str, ...] = ("photo", "sketch"),
        per_class: int = 25,
        classes: tuple[str, ...] = ("cat", "dog"),
    ) -> Path:
        for number, (domain, name) in enumerate((d, c) for d in domains for c in classes):
            folder = tmp_path / "data" / domain / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                rng = np.random.default_rng(1000 * number + index)
                Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(
                    folder / f"{index}.png"
                )
        return tmp_path / "data"

    return write


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Settings of a student that trains in seconds."""
    return TINY


@pytest.fixture
def edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs a verb on ``tmp_path/data`` in this process, with a tiny student: exit code and the printed object.

    With ``root`` it runs on these data instead.
    """
    monkeypatch.syspath_prepend(str(tmp_path / "code"))

    def run(
        *words: str, out: str = "out", settings: tuple[str, ...] = (), root: str = ""
    ) -> tuple[int, dict[str, Any]]:
        images = root or str(tmp_path / "data")
        chosen = [f"data.root={images}"] if words[0] == "build" else []
        if words[0] == "bench":
            words = (*words, "--dataset", images)
        asked = [word for value in (*TINY, *chosen, *settings) for word in ("--set", value)]
        return invoke(*words, "--json", "--out", tmp_path / out, *asked)[:2]

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """An image file."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def labels_shown(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The labels that promptkd's student is shown in this process from now on."""
    loss, shown = PromptKd.loss, set[int]()

    def watched(self: PromptKd, outputs: Any, batch: Batch) -> Any:
        shown.update(batch.labels.tolist())
        return loss(self, outputs, batch)

    monkeypatch.setattr(PromptKd, "loss", watched)
    return shown


VENDOR = '''
"""A vendor's model, as a user would wrap it: it writes down what it is asked."""
import json
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent


class Teacher:
    fingerprint = "vendor 1"
    logit_scale = 20.0

    def __init__(self):
        self.how = json.loads((HERE / "how.json").read_text())

    def embed_images(self, images):
        arrays = [np.asarray(image) for image in images]
        with (HERE / "asked.txt").open("a") as file:
            file.writelines(f"{array.tobytes().hex()[:64]}\\n" for array in arrays)
        rows = np.array([np.resize(array[::6, ::6].ravel(), self.how["size"]) for array in arrays], float)
        broken = [array[0, 0].tolist() in self.how["broken"] for array in arrays]
        rows[broken] = np.nan
        return rows

    def embed_texts(self, texts):
        return np.array([np.arange(self.how["size"]) + len(text) + ord(text[2]) for text in texts], float)
'''


@pytest.fixture
def vendor(tmp_path: Path) -> Callable[..., str]:
    """Sets how the vendor's model behaves; gives the setting that names it."""

    def behave(size: int = 8, broken: tuple[list[int], ...] = ()) -> str:
        folder = tmp_path / "code"
        folder.mkdir(exist_ok=True)
        (folder / f"vendor_{tmp_path.name}.py").write_text(VENDOR)
        (folder / "how.json").write_text(json.dumps({"size": size, "broken": broken}))
        return f"teacher.model=call:vendor_{tmp_path.name}:Teacher"

    return behave


def asked_about(tmp_path: Path) -> Counter[str]:
    return Counter((tmp_path / "code" / "asked.txt").read_text().split())
