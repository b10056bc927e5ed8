"""Every form of a teacher's name: found, refused before any work, identified without loading; and user code."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_distill import embeddings, teacher_names
from vlkd_distill.embedding_store import StoreTeacher
from vlkd_distill.onnx_pair import OnnxPairTeacher
from vlkd_distill.querybudget import BudgetedTeacher
from vlkd_distill.teacher_export import write_store
from vlkd_distill.teacher_loading import CallableTeacher, load
from vlkd_distill.teacher_names import check_name, form_of, teacher_key
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError

CODE = """
import numpy as np
import torch

logit_scale = 12.0

def image(picture):
    return np.asarray(picture).mean(axis=(0, 1)) + [1, 2, 3]

def text(words):
    return torch.tensor([float(len(words)), 1.0, 2.0], requires_grad=True)

def broken(picture):
    return np.array([np.nan, 1.0, 2.0]) if picture.getpixel((0, 0))[0] == 7 else image(picture)

def nothing(words):
    return np.array([np.inf, 0.0, 0.0])

def scalar(picture):
    return 3.0

def wide(picture):
    return np.ones(4)

def fails(picture):
    raise ConnectionError("no route")

class Maker:
    fingerprint = "weights-7"
    def __init__(self):
        self.logit_scale = 30
    def embed_images(self, pictures):
        return np.stack([image(picture) for picture in pictures])
    def embed_texts(self, texts):
        return [[len(words), 1, 2] for words in texts]

class Whole(Maker):
    def embed_views(self, views):
        return views.mean(dim=(2, 3))

class Short(Maker):
    def embed_texts(self, texts):
        return np.ones((1, 3))

class NeedsKey:
    def __init__(self, key):
        pass

class BadScale(Maker):
    def __init__(self):
        self.logit_scale = 0

ready = Maker()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of the user's, of another name in every test."""
    name = f"vendor_{abs(hash(request.node.name))}"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (3, 2), (red, 9, 5))


@pytest.mark.parametrize("what", ["image,text", "Maker", "Whole", "ready"])
def test_user_code_is_a_teacher(module: str, what: str) -> None:
    teacher = CallableTeacher.load(f"call:{module}:{what}")
    images = teacher.embed_images([picture(1), picture(200)])
    expected = np.array([[2.0, 11.0, 8.0], [201.0, 11.0, 8.0]])
    np.testing.assert_allclose(images, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    words = np.array([[3.0, 1.0, 2.0], [5.0, 1.0, 2.0]])
    np.testing.assert_allclose(
        teacher.embed_texts(["cat", "horse"]), words / np.linalg.norm(words, axis=1, keepdims=True), atol=1e-6
    )
    assert teacher.dim == 3 and teacher.logit_scale == (12.0 if "," in what else 30.0)
    views = torch.full((2, 3, 4, 4), 1 / 255)
    row = np.ones(3) if what == "Whole" else np.array([2.0, 3.0, 4.0])
    found = teacher.embed_views(views)
    np.testing.assert_allclose(found.numpy(), [row / np.linalg.norm(row)] * 2, atol=1e-6)
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        pytest.param("lost", ConfigError, "expected 'lost' in the module", id="no attribute"),
        pytest.param("Maker.inner", ConfigError, "found no 'inner'", id="no inner attribute"),
        pytest.param("logit_scale", ConfigError, "float without embed_images and embed_texts", id="a number"),
        pytest.param("image,logit_scale", ConfigError, "to be a function, found a float", id="no function"),
        pytest.param("NeedsKey", UnavailableError, "calling it without arguments gave", id="needs arguments"),
        pytest.param("BadScale", ConfigError, "finite logit_scale above 0, found 0", id="scale"),
    ],
)
def test_user_code_that_is_no_teacher(module: str, what: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CallableTeacher.load(f"call:{module}:{what}")


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        pytest.param("scalar,text", DataError, r"expected numbers of shape \(1, D\), found", id="scalar"),
        pytest.param("fails,text", UnavailableError, "failed on 1 images: no route", id="fails"),
        pytest.param("wide,text", DataError, r"numbers of shape \(2, 4\), found .* \(2, 3\)", id="two sizes"),
        pytest.param("Short", DataError, r"shape \(2, 3\), found float64 of \(1, 3\)", id="too few"),
        pytest.param("image,nothing", DataError, "not finite for 2 of 2 texts: 'a', 'b'", id="not finite"),
    ],
)
def test_answers_that_cannot_be_used(module: str, what: str, error: type[Exception], message: str) -> None:
    teacher = CallableTeacher.load(f"call:{module}:{what}")
    with pytest.raises(error, match=message):
        teacher.embed_images([picture(1)])
        teacher.embed_texts(["a", "b"])


def test_an_image_without_a_finite_embedding_is_named(module: str, tmp_path: Path) -> None:
    samples = []
    for red in (5, 7, 9):
        path = tmp_path / f"{red}.png"
        picture(red).save(path)
        samples.append(Sample(path, f"d/c/{red}.png", "d", 0))
    teacher = load(f"call:{module}:broken,text", tmp_path / "cache")
    with pytest.raises(DataError, match=r"not finite for 1 of 3 images: .*7\.png\."):
        embeddings.embed(teacher, samples, tmp_path / "shards")
    view = torch.full((1, 3, 2, 2), 7 / 255)
    with pytest.raises(DataError, match="not finite for 1 of 1 views: 0"):
        teacher.embed_views(view)


def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Expected a Python module 'no_such_vendor'"):
        check_name("call:no_such_vendor:teacher")
    with pytest.raises(ConfigError, match=r"Expected a Python module 'json\.no_part'"):
        teacher_key("call:json.no_part:teacher")
    with pytest.raises(UnavailableError, match=r"'json\.no_part' cannot be imported"):
        CallableTeacher.load("call:json.no_part:teacher")
    (tmp_path / "vendor_that_breaks.py").write_text("raise RuntimeError('no key')")
    monkeypatch.syspath_prepend(tmp_path)
    check_name("call:vendor_that_breaks:teacher")  # looks, and imports nothing
    with pytest.raises(UnavailableError, match="cannot be imported: no key"):
        CallableTeacher.load("call:vendor_that_breaks:teacher")


def test_each_form_gives_its_teacher(module: str, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "1.png")
    file = tmp_path / "s" / "store.safetensors"
    write_store(
        file, name="v", logit_scale=2.0, images=[tmp_path / "1.png"], image_rows=np.ones((1, 3)),
        texts=["a"], text_rows=np.ones((1, 3)),
    )  # fmt: skip
    for name in (f"store:{file}", f"store:{file.parent}"):
        teacher = load(name, tmp_path / "cache", budget=0)
        assert isinstance(teacher, StoreTeacher) and teacher.embed_texts(["a"]).shape == (1, 3)
    assert isinstance(load(f"call:{module}:image,text", tmp_path / "cache"), BudgetedTeacher)
    assert isinstance(load("demo", tmp_path / "cache"), OpenClipTeacher)
    limited = load("demo", tmp_path / "cache", budget=1)
    assert isinstance(limited, BudgetedTeacher) and limited.embed_texts(["a dog"]).shape == (1, 128)
    with pytest.raises(UnavailableError, match="of the 1 questions of its budget are spent"):
        limited.embed_texts(["a cat"])


def test_a_transformers_folder_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlkd_distill import teacher_loading, transformers_export

    (tmp_path / "model").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "model" / file).write_text("{}")
    asked: list[tuple[str, Path]] = []

    def export(model: str, folder: Path) -> None:
        asked.append((model, folder))
        folder.mkdir(parents=True)
        (folder / "teacher.json").write_text("{}")

    monkeypatch.setattr(teacher_loading, "check_name", lambda name: None)
    monkeypatch.setattr(transformers_export, "export_transformers", export)
    monkeypatch.setattr(teacher_loading, "OnnxPairTeacher", lambda name, folder: (name, folder))
    name = f"hf-dir:{tmp_path / 'model'}"
    first, again = load(name, tmp_path / "cache"), load(name, tmp_path / "cache")
    assert len(asked) == 1 and asked[0][0] == str(tmp_path / "model")
    assert first == again == (name, asked[0][1])
    (tmp_path / "model" / "model.safetensors").write_text("other weights")
    load(name, tmp_path / "cache")
    assert len(asked) == 2 and asked[1][1] != asked[0][1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("bert", "has no known form", id="form"),
        pytest.param("ViT-B-16:", "has no known form", id="no tag"),
        pytest.param(
            "local-dir:/nowhere", "open_clip_config.json at /nowhere, found nothing", id="open_clip"
        ),
        pytest.param("onnx-pair:/nowhere", "image.onnx, text.onnx, teacher.json at /nowhere", id="pair"),
        pytest.param("store:/nowhere", "at '/nowhere', found nothing", id="store"),
        pytest.param("store:", "at '', found nothing", id="unnamed store"),
        pytest.param("hf-dir:/nowhere", "config.json at /nowhere, found nothing", id="transformers"),
        pytest.param("hf:", "names no model", id="hub"),
        pytest.param("call:module", "'call:<module>:<attribute>'", id="no attribute"),
        pytest.param("call:a b:c", "'call:<module>:<attribute>'", id="no module name"),
        pytest.param("call:os:a,b,c", "'call:<module>:<attribute>'", id="three functions"),
        pytest.param("call:os:system('x')", "'call:<module>:<attribute>'", id="no name but code"),
    ],
)
def test_names_that_cannot_be_meant(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_name(name)


def test_folders_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ConfigError, match=r"Pickled weights .* are never read"):
        check_name(f"hf-dir:{tmp_path}")
    with pytest.raises(ConfigError, match="found a folder without any"):
        check_name(f"store:{tmp_path}")
    with pytest.raises(ConfigError, match="found other files"):
        check_name(f"onnx-pair:{tmp_path}")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        pytest.param(
            None, r"needs transformers, which is not installed: pip install 'vlkd-edge\[optimum\]'", id="none"
        ),
        pytest.param(
            "4.40.2", r"4\.56 or newer, found 4\.40\.2: pip install 'vlkd-edge\[optimum\]'", id="old"
        ),
    ],
)
def test_a_missing_package_is_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, found: str | None, message: str
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(teacher_names, "version", version)
    with pytest.raises(UnavailableError, match=message):
        check_name("hf:some/clip")


def test_forms() -> None:
    named = ("demo", "local-dir:a", "onnx-pair:a", "store:a", "call:a:b", "hf-dir:a", "hf:a/b")
    assert [form_of(name) for name in named] == [name.split(":")[0] for name in named]
    assert form_of("hf-hub:a/b") == form_of("ViT-B-16:laion2b") == "open-clip"


def test_a_key_follows_the_content_and_loads_nothing(module: str, tmp_path: Path) -> None:
    folder = tmp_path / "pair"
    folder.mkdir()
    (tmp_path / "s.safetensors").write_bytes(b"one")
    source = tmp_path / "code" / f"{module}.py"
    named = {
        f"onnx-pair:{folder}": folder / "image.onnx",
        f"store:{tmp_path / 's.safetensors'}": tmp_path / "s.safetensors",
        f"call:{module}:Maker": source,
    }
    for name, file in named.items():
        before = teacher_key(name)
        assert teacher_key(name) == before
        file.write_bytes(b"# other content")
        assert teacher_key(name) != before
    assert teacher_key("hf:some/clip") == "hf:some/clip"
    assert module not in sys.modules


def test_a_name_is_checked_without_torch() -> None:
    code = (
        "import sys; from vlkd_distill.teacher_names import check_name, teacher_key; check_name('demo'); "
        "check_name('call:json:loads'); teacher_key('demo'); "
        "assert not {'torch', 'onnxruntime', 'transformers'} & set(sys.modules)"
    )
    paths = [str(Path(teacher_names.__file__).parents[1]), *sys.path]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"], check=True)


def test_a_pair_is_known_by_the_name_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected an ONNX pair"):
        OnnxPairTeacher("onnx-pair:x", tmp_path)
