"""Black boxes: what a pair's teacher.json may say, tiny graphs run by onnxruntime, and stores of embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_distill import class_vectors
from vlkd_distill.answers import unit_rows
from vlkd_distill.embedding_store import StoreTeacher
from vlkd_distill.onnx_pair import OnnxPairTeacher, PairSpec
from vlkd_distill.teacher_export import write_store
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError
from vlkd_runtime.tensorfile import write_tensors

SPEC = PairSpec(
    "tiny", 20.0, 4, 6, None, "nearest", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), "clip-bpe", 9, 0
)


def graph(path: Path, kind: str, *, rows: int | str = "N", outputs: int = 1, mask: bool = False) -> None:
    """A tower that gives the mean of each colour, or the sums of a text's first and of its known tokens."""
    if kind == "image":
        inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [rows, 3, 4, 6])]
        nodes = [helper.make_node("ReduceMean", ["pixels", "axes"], ["y0"], keepdims=0)]
        constants = [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])]
    else:
        inputs = [helper.make_tensor_value_info("ids", TensorProto.INT32, [rows, 9])]
        nodes = [
            helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Slice", ["floats", "from", "to", "axis"], ["y0"]),
        ]
        constants = [
            helper.make_tensor(name, TensorProto.INT64, [1], [value])
            for name, value in (("from", 1), ("to", 4), ("axis", 1))
        ]
        if mask:
            inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [rows, 9]))
            nodes[0].output[0] = "bare"
            nodes[1:1] = [
                helper.make_node("Cast", ["attention_mask"], ["weights"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["bare", "weights"], ["floats"]),
            ]
    made = [helper.make_tensor_value_info("y0", TensorProto.FLOAT, [rows, 3])]
    for index in range(1, outputs):
        nodes.append(helper.make_node("Identity", ["y0"], [f"y{index}"]))
        made.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, [rows, 3]))
    body = helper.make_graph(nodes, kind, inputs, made, constants)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


def write_pair(folder: Path, spec: PairSpec = SPEC, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    graph(folder / "image.onnx", "image", **changes)
    graph(folder / "text.onnx", "text", **changes)
    (folder / "teacher.json").write_text(spec.to_json())
    return folder


def picture(seed: int, width: int = 6, height: int = 4) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_teacher_json_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text(SPEC.to_json())
    assert PairSpec.read(tmp_path / "teacher.json") == SPEC


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        pytest.param("", {"format": "x/9"}, "format must be 'vlkd-onnx-pair/1', found 'x/9'", id="format"),
        pytest.param("", {"logit_scale": 0}, "logit_scale must be a number", id="scale"),
        pytest.param("", {"extra": 1}, "extra is not known", id="unknown"),
        pytest.param("image", {"mean": [0.5]}, "image.mean must be three numbers", id="mean"),
        pytest.param("image", {"std": [0.5, 0.5, 0]}, "image.std must be three numbers", id="std"),
        pytest.param("image", {"interpolation": "nearest"}, "interpolation must be one of", id="filter"),
        pytest.param("image", {"shortest": 3}, "shortest must be at least height and width", id="too short"),
        pytest.param("image", {"shortest": "4"}, "shortest must be null or an integer", id="shortest type"),
        pytest.param("text", {"tokenizer": "bert"}, "tokenizer must be 'clip-bpe'", id="tokenizer"),
        pytest.param("text", {"context_length": 0}, "context_length must be an integer", id="length"),
    ],
)
def test_a_teacher_json_that_cannot_be_meant(
    tmp_path: Path, part: str, change: dict[str, Any], message: str
) -> None:
    plain = json.loads(SPEC.to_json())
    (plain[part] if part else plain).update(change)
    (tmp_path / "teacher.json").write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=message):
        PairSpec.read(tmp_path / "teacher.json")


@pytest.mark.parametrize("size", [(33, 57), (58, 33), (32, 32), (200, 47)], ids=str)
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_prepared_as_open_clip_does(size: tuple[int, int], mode: str, interpolation: str) -> None:
    image = picture(1, *size)
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    theirs = image_transform_v2(
        PreprocessCfg(size=32, mean=mean, std=std, interpolation=interpolation, resize_mode=mode),
        is_train=False,
    )
    shortest = 32 if mode == "shortest" else None
    spec = PairSpec("m", 1.0, 32, 32, shortest, "nearest", interpolation, mean, std, "clip-bpe", 77, 0)
    np.testing.assert_allclose(spec.prepare(image), theirs(image).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "rows", [pytest.param("N", id="any number"), pytest.param(1, id="one"), pytest.param(4, id="four")]
)
def test_a_pair_by_hand(tmp_path: Path, rows: int | str) -> None:
    teacher = OnnxPairTeacher("mine", write_pair(tmp_path / "pair", rows=rows))
    images = [picture(seed) for seed in range(6)]
    expected = []
    for image in images:
        colours = np.asarray(image, np.float64).mean(axis=(0, 1)) / 255
        row = (colours - SPEC.mean) / SPEC.std
        expected.append(row / np.sqrt((row**2).sum()))
    np.testing.assert_allclose(teacher.embed_images(images), expected, atol=1e-5)
    views = torch.from_numpy(np.stack([np.asarray(i, np.float32) / 255 for i in images])).permute(0, 3, 1, 2)
    np.testing.assert_allclose(teacher.embed_views(views).numpy(), expected, atol=1e-5)
    assert teacher.dim == 3 and teacher.logit_scale == 20.0 and teacher.name == "mine"
    alone = np.concatenate([teacher.embed_texts([text]) for text in ("a dog", "a cat", "the end")])
    np.testing.assert_allclose(teacher.embed_texts(["a dog", "a cat", "the end"]), alone, atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_a_mask_is_given_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "pair")
    plain = OnnxPairTeacher("a", folder)
    graph(folder / "text.onnx", "text", mask=True)
    masked = OnnxPairTeacher("b", folder)
    np.testing.assert_allclose(plain.embed_texts(["a dog"]), masked.embed_texts(["a dog"]))
    assert plain.fingerprint != masked.fingerprint


def test_a_tokenizer_json(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = write_pair(tmp_path / "pair")
    plain = json.loads(SPEC.to_json())
    plain["text"] |= {"tokenizer": "tokenizer.json", "pad_id": 1}
    (folder / "teacher.json").write_text(json.dumps(plain))
    reader = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "<pad>": 1, "a": 2, "dog": 3, "cat": 7}, unk_token="<unk>")
    )
    reader.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    reader.save(str(folder / "tokenizer.json"))
    found = OnnxPairTeacher("mine", folder).embed_texts(
        ["a dog cat", "dog", "a a a a a a a a a a a a a a cat"]
    )
    by_hand = np.array([[3, 7, 1], [1, 1, 1], [2, 2, 2]], float)  # the second token to the fourth
    np.testing.assert_allclose(found, by_hand / np.linalg.norm(by_hand, axis=1, keepdims=True), atol=1e-6)


def damage_graph(folder: Path) -> None:
    (folder / "image.onnx").write_bytes(b"no graph")


def two_outputs(folder: Path) -> None:
    graph(folder / "text.onnx", "text", outputs=2)


def swap(folder: Path) -> None:
    (folder / "text.onnx").write_bytes((folder / "image.onnx").read_bytes())


def forget(folder: Path) -> None:
    (folder / "text.onnx").unlink()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        pytest.param(damage_graph, UnavailableError, "image.onnx: onnxruntime cannot load it", id="no graph"),
        pytest.param(
            two_outputs, ConfigError, r"one output, found \['ids'\] and \['y0', 'y1'\]", id="outputs"
        ),
        pytest.param(swap, ConfigError, r"text.onnx: cannot be run on \[\(1, 9\)", id="another input"),
        pytest.param(forget, ConfigError, "Expected an ONNX pair with text.onnx at", id="missing"),
    ],
)
def test_a_pair_that_does_not_work(tmp_path: Path, damage: Any, error: type[Exception], message: str) -> None:
    folder = write_pair(tmp_path / "pair")
    damage(folder)
    with pytest.raises(error, match=message):
        OnnxPairTeacher("mine", folder)


def test_a_row_without_direction_is_not_made_up() -> None:
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows[0], [0.6, 0.8])
    assert np.isnan(rows[1]).all()


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    made = []
    for index in range(5):
        path = tmp_path / "images" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        picture(index).save(path)
        made.append(Sample(path, f"d/c/{index}.png", "d", 0))
    return tuple(made)


ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
TEXTS = ("a photo of a dog", "a photo of a cat", "dog", "sea horse")
TEXT_ROWS = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)


def store(path: Path, samples: Sequence[Sample], **changes: Any) -> Path:
    given: dict[str, Any] = {
        "name": "vendor", "logit_scale": 50.0, "images": [sample.path for sample in samples],
        "image_rows": ROWS[: len(samples)], "texts": TEXTS, "text_rows": TEXT_ROWS,
    }  # fmt: skip
    write_store(path, **(given | changes))
    return path


def test_a_store_finds_images_by_their_content(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    teacher = StoreTeacher("store:x", [store(tmp_path / "s.safetensors", samples)])
    moved = Sample(samples[3].path.rename(tmp_path / "elsewhere.png"), "other/c/9.png", "other", 1)
    found = teacher.embed_samples([moved, samples[0], moved])
    np.testing.assert_allclose(found, [row / np.linalg.norm(row) for row in ROWS[[3, 0, 3]]], atol=1e-6)
    np.testing.assert_allclose(
        teacher.embed_texts(["dog"]), [TEXT_ROWS[2] / np.linalg.norm(TEXT_ROWS[2])], atol=1e-6
    )
    assert teacher.dim == 4 and teacher.logit_scale == 50.0 and teacher.embed_samples([]).shape == (0, 4)


def test_a_large_store_answers_as_a_dictionary_would(tmp_path: Path) -> None:
    rng, samples = np.random.default_rng(3), []
    for index in range(300):
        path = tmp_path / f"{index}.bin"
        path.write_bytes(str(index).encode())
        samples.append(Sample(path, f"d/c/{index}", "d", 0))
    rows, files = rng.normal(size=(300, 5)).astype(np.float32), []
    for number, part in enumerate(([*range(0, 200)], [*range(150, 290)])):  # fifty images are in both
        files.append(tmp_path / f"{number}.safetensors")
        write_store(
            files[-1], name="v", logit_scale=2.0, images=[samples[k].path for k in part],
            image_rows=rows[part], texts=["a"], text_rows=np.ones((1, 5)),
        )  # fmt: skip
    teacher = StoreTeacher("store:x", files)
    order = rng.permutation(290)
    np.testing.assert_allclose(
        teacher.embed_samples([samples[k] for k in order]),
        [rows[k] / np.linalg.norm(rows[k]) for k in order],
        atol=1e-6,
    )
    teacher.check_samples(samples[:290])
    with pytest.raises(
        DataError, match=r"no embedding of 10 of 300 images: .*/290.bin, .* 5 more\. It holds 290"
    ):
        teacher.check_samples(samples)


def test_stored_class_vectors_are_texts_of_a_bare_template(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    teacher = StoreTeacher("store:x", [store(tmp_path / "s.safetensors", samples)])
    made = class_vectors.compute(teacher, ["sea_horse", "dog"], ["{}"])
    expected = [row / np.linalg.norm(row) for row in TEXT_ROWS[[3, 2]]]
    np.testing.assert_allclose(made.vectors, expected, atol=1e-6)


def test_a_folder_of_parts_is_one_store(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    first = store(tmp_path / "a.safetensors", samples[:3])
    second = store(
        tmp_path / "b.safetensors", samples[2:], image_rows=ROWS[2:], texts=(), text_rows=TEXT_ROWS[:0]
    )
    teacher = StoreTeacher("store:x", [first, second])
    np.testing.assert_allclose(teacher.embed_samples(samples), unit_rows(ROWS), atol=1e-6)
    other = store(tmp_path / "c.safetensors", samples[:1], image_rows=ROWS[4:])
    with pytest.raises(DataError, match="two different embeddings of the image file"):
        StoreTeacher("store:x", [first, other])
    third = store(tmp_path / "d.safetensors", samples[:1], name="another")
    with pytest.raises(DataError, match=r"expected size, logit_scale and teacher \(4, 50.0, 'vendor'\)"):
        StoreTeacher("store:x", [first, third])


def test_what_a_store_lacks_is_named(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    teacher = StoreTeacher("store:x", [store(tmp_path / "s.safetensors", samples[:2])])
    with pytest.raises(
        DataError, match=r"no embedding of 3 of 5 images: .*2.png, .*3.png, .*4.png. It holds 2"
    ):
        teacher.embed_samples(samples)
    with pytest.raises(UnavailableError, match=r"the text 'a bird' and 1 more of 3; it holds 4 texts"):
        teacher.embed_texts(["dog", "a bird", "a fish"])
    with pytest.raises(UnavailableError, match=r'distill\.teacher_view = "clean_cached"'):
        teacher.embed_views(torch.zeros(2, 3, 8, 8))
    with pytest.raises(UnavailableError, match="cannot embed 1 decoded"):
        teacher.embed_images([picture(0)])


def test_a_stored_embedding_that_is_not_finite_names_its_image(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    with pytest.raises(DataError, match=r"not finite for 1 of 5 images: .*3.png\."):
        store(tmp_path / "s.safetensors", samples, image_rows=rows)
    assert not (tmp_path / "s.safetensors").exists()
    keys = [hashlib.sha256(sample.path.read_bytes()).digest() for sample in samples]
    foreign = {
        "image": rows, "image_sha256": np.frombuffer(b"".join(keys), np.uint8).reshape(5, 32), "text": TEXT_ROWS
    }  # fmt: skip
    metadata = {"format": "vlkd-embedding-store/1", "logit_scale": "1", "texts": json.dumps(TEXTS)}
    (tmp_path / "f.safetensors").write_bytes(write_tensors(foreign, metadata))
    teacher = StoreTeacher("store:x", [tmp_path / "f.safetensors"])
    assert teacher.embed_samples(samples[:3]).shape == (3, 4)
    with pytest.raises(DataError, match=r"not finite for 1 of 5 images: .*3.png\."):
        teacher.embed_samples(samples)
    with pytest.raises(DataError, match=r"not finite for 1 of 5 images: .*3.png\."):
        teacher.check_samples(samples)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        pytest.param({"image": ROWS[0]}, {}, r"image must be a float tensor \(N, D\)", id="vector"),
        pytest.param({"image_sha256": ROWS}, {}, r"image_sha256 must be a uint8 tensor \(5, 32\)", id="keys"),
        pytest.param({"text": ROWS[:, :3]}, {}, r"\(T, 4\) as image, found \(5, 3\)", id="other size"),
        pytest.param({}, {"texts": '["a"]'}, "texts must name 4 rows, found 1", id="texts"),
        pytest.param({}, {"texts": "a, b"}, "texts must be a JSON list", id="no list"),
        pytest.param({}, {"logit_scale": "big"}, "logit_scale must be a number", id="scale"),
        pytest.param({}, {"logit_scale": "nan"}, "logit_scale must be above 0", id="no scale"),
        pytest.param(
            {}, {"format": "npz"}, "format must be 'vlkd-embedding-store/1', found 'npz'", id="format"
        ),
    ],
)
def test_a_file_that_is_no_store(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, str], message: str
) -> None:
    whole = {"image": ROWS, "image_sha256": np.zeros((5, 32), np.uint8), "text": TEXT_ROWS} | tensors
    said = {"format": "vlkd-embedding-store/1", "logit_scale": "9", "texts": json.dumps(TEXTS)} | metadata
    (tmp_path / "s.safetensors").write_bytes(write_tensors(whole, said))
    with pytest.raises(DataError, match=message):
        StoreTeacher("store:x", [tmp_path / "s.safetensors"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"image_rows": ROWS[:4]}, r"expected rows \(5, D\)", id="a row too few"),
        pytest.param({"text_rows": TEXT_ROWS[:, :3]}, r"found \(5, 4\) and \(4, 3\)", id="another size"),
        pytest.param(
            {"text_rows": TEXT_ROWS * [[1], [0], [1], [1]]}, "1 of 4 texts: a photo of a cat", id="zero"
        ),
        pytest.param({"logit_scale": -1.0}, "finite logit_scale above 0, found -1", id="scale"),
    ],
)
def test_what_cannot_be_stored(
    samples: tuple[Sample, ...], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        store(tmp_path / "s.safetensors", samples, **changes)
