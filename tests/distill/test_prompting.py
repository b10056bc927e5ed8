"""Prompted towers against hooks on the plain ones, and a teacher with prompts as a teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from vlkd_distill import class_vectors, prompting
from vlkd_distill.prompting import LEARNED, PromptedTeacher, TextTower
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.errors import ConfigError, DataError

VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
CNN = {"image_size": 32, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
END = 49407


def teacher(
    vision: dict[str, Any] = VIT, text: dict[str, Any] | None = None, custom: bool = False, seed: int = 0
) -> OpenClipTeacher:
    torch.manual_seed(seed)
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    model = kind(24, vision, {**TEXT, **(text or {})})
    described = open_clip.transform.PreprocessCfg(32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    open_clip.model.set_model_preprocess_cfg(model, described.__dict__)
    preprocess = open_clip.transform.image_transform_v2(described, is_train=False)
    return OpenClipTeacher("tiny:test", model, preprocess, open_clip.SimpleTokenizer(context_length=16))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8))


def unit(rows: torch.Tensor) -> np.ndarray:
    own = rows.detach().double().numpy()
    normed: np.ndarray = own / np.linalg.norm(own, axis=1, keepdims=True)
    return normed


TOWERS = pytest.mark.parametrize(
    ("text", "custom"),
    [
        pytest.param({}, False, id="clip"),
        pytest.param({}, True, id="custom text"),
        pytest.param({"pool_type": "eos", "eos_id": END}, False, id="end token"),
        pytest.param({"pool_type": "last", "no_causal_mask": True}, True, id="last, every token sees all"),
        pytest.param(
            {"pool_type": "first", "no_causal_mask": True, "proj_bias": True}, True, id="first, bias"
        ),
        pytest.param({"proj_type": "none", "width": 24}, True, id="no projection"),
    ],
)


@TOWERS
def test_words_as_context_say_what_the_words_say(text: dict[str, Any], custom: bool) -> None:
    own = teacher(CNN, text, custom)
    tower = TextTower.of(own)
    words = own._tokenizer(["a photo of a"])[0, 1:5]
    context = tower.owner.token_embedding(words)[None]
    found = tower.encode(tower.ids(["dog.", "sea horse."], 4), context)
    assert (
        np.abs(unit(found) - own.embed_texts(["a photo of a dog.", "a photo of a sea horse."])).max() < 1e-5
    )


@TOWERS
def test_deep_text_prompts_equal_hooks_on_the_plain_tower(text: dict[str, Any], custom: bool) -> None:
    own = teacher(CNN, text, custom)
    tower = TextTower.of(own)
    prompts = randn(2, 3, tower.owner.token_embedding.embedding_dim)
    handles = []
    for layer, block in enumerate(list(tower.owner.transformer.resblocks)[:2]):

        def put(_: Any, inputs: tuple[torch.Tensor, ...], layer: int = layer) -> tuple[torch.Tensor, ...]:
            x = inputs[0].clone()
            for row in range(len(x)):
                for token in range(3):
                    place = tower.owner.positional_embedding[1 + token] if layer == 0 else 0.0
                    x[row, 1 + token] = prompts[layer, token] + place
            return (x, *inputs[1:])

        handles.append(block.register_forward_pre_hook(put))
    ids = tower.ids(["dog.", "horse."], 3)
    with torch.no_grad():
        expected = own._model.encode_text(ids)  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    assert torch.allclose(tower.encode(ids, prompts), expected, atol=1e-5)
    assert not torch.allclose(tower.encode(ids, prompts[:1]), expected, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="class token"),
        pytest.param({"pool_type": "avg", "final_ln_after_pool": True}, id="mean of patches"),
        pytest.param({"attentional_pool": True, "attn_pooler_heads": 2}, id="attention"),
        pytest.param({"no_ln_pre": True}, id="no first norm"),
    ],
)
def test_deep_visual_prompts_equal_hooks_on_the_plain_tower(changes: dict[str, Any]) -> None:
    visual: Any = teacher({**VIT, **changes})._model.visual
    for module in visual.modules():
        if isinstance(module, torch.nn.LayerNorm):  # one norm after another would not show otherwise
            module.weight.data = 1.0 + 0.3 * randn(*module.weight.shape, seed=7)
    prompts, batch = randn(2, 3, 32), randn(2, 3, 32, 32, seed=1)

    def put(layer: int) -> Callable[..., tuple[torch.Tensor, ...]]:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            rows = []
            for row in inputs[0]:
                tokens = list(row)[:17] + [visual.ln_pre(t) if layer == 0 else t for t in prompts[layer]]
                rows.append(torch.stack(tokens))
            return (torch.stack(rows), *inputs[1:])

        return hook

    blocks = list(visual.transformer.resblocks)
    handles = [block.register_forward_pre_hook(put(layer)) for layer, block in enumerate(blocks[:2])]
    handles.append(blocks[-1].register_forward_hook(lambda _, __, output: output[:, :17]))
    with torch.no_grad():
        expected = visual(batch)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        assert torch.allclose(prompting.encode_images(visual, batch, prompts), expected, atol=1e-5)
        assert not torch.allclose(visual(batch), expected, atol=1e-3)


@pytest.fixture
def prompted() -> PromptedTeacher:
    return PromptedTeacher(teacher(), randn(2, 3, 32), randn(3, 2, 32, seed=1))


def test_images_and_views_are_seen_with_the_prompts(prompted: PromptedTeacher) -> None:
    rows, plain = prompted.embed_images([image(), image(1)]), prompted.base.embed_images([image(), image(1)])
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6) and np.abs(rows - plain).max() > 1e-2
    views = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    visual = prompted.base._model.visual
    assert prompted.visual is not None
    expected = unit(prompting.encode_images(visual, (views - mean) / std, prompted.visual))
    assert np.abs(prompted.embed_views(views).numpy() - expected).max() < 1e-5
    text_only = PromptedTeacher(prompted.base, prompted.text, None)
    assert np.array_equal(text_only.embed_images([image(), image(1)]), plain)
    assert torch.equal(text_only.embed_views(views), prompted.base.embed_views(views))


def test_only_texts_that_ask_for_it_get_the_learned_context(prompted: PromptedTeacher) -> None:
    rows = prompted.embed_texts(["a dog", f"{LEARNED} dog.", "a cat", f"{LEARNED} cat."])
    assert np.allclose(rows[[0, 2]], prompted.base.embed_texts(["a dog", "a cat"]), atol=1e-6)
    tower = TextTower.of(prompted.base)
    learned = unit(tower.encode(tower.ids(["dog.", "cat."], 3), prompted.text))
    assert np.abs(rows[[1, 3]] - learned).max() < 1e-5
    assert np.abs(rows[1] - prompted.base.embed_texts(["dog."])[0]).max() > 1e-2


def test_class_vectors_say_that_their_context_is_learned(prompted: PromptedTeacher) -> None:
    stored = prompting.prompted_class_vectors(prompted, ["sea_horse", "dog"])
    assert stored.prompts == ((f"{LEARNED} sea horse.",), (f"{LEARNED} dog.",))
    assert stored.templates == (f"{LEARNED} {{}}.",)
    assert (stored.teacher, stored.teacher_fingerprint) == (prompted.name, prompted.fingerprint)
    assert np.array_equal(class_vectors.embed_prompts(prompted, stored.prompts), stored.vectors)
    plain = class_vectors.compute(prompted.base, ["sea_horse", "dog"], ["a photo of a {}."])
    assert np.abs(stored.vectors - plain.vectors).max() > 1e-2


def test_the_fingerprint_follows_weights_and_prompts(prompted: PromptedTeacher) -> None:
    base, text, visual = prompted.base, prompted.text, prompted.visual
    assert visual is not None
    others = [
        PromptedTeacher(base, text + 1e-3, visual),
        PromptedTeacher(base, text, visual + 1e-3),
        PromptedTeacher(base, text, None),
        PromptedTeacher(base, text.reshape(3, 2, 32), visual),
        PromptedTeacher(teacher(seed=1), text, visual),
    ]
    assert len({base.fingerprint, prompted.fingerprint, *(each.fingerprint for each in others)}) == 7
    assert PromptedTeacher(base, text, visual).fingerprint == prompted.fingerprint


@pytest.mark.parametrize("seen", [True, False], ids=["both towers", "text only"])
def test_saved_prompts_come_back(seen: bool, prompted: PromptedTeacher, tmp_path: Path) -> None:
    own = prompted if seen else PromptedTeacher(prompted.base, prompted.text, None)
    own.save(tmp_path / "one")
    again = PromptedTeacher.load(tmp_path / "one", prompted.base)
    assert again.fingerprint == own.fingerprint and (again.visual is not None) is seen
    again.save(tmp_path / "two")
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("one", "two")}
    assert len(digests) == 1


def test_prompts_of_other_weights_and_damaged_files_are_refused(
    prompted: PromptedTeacher, tmp_path: Path
) -> None:
    path = tmp_path / "prompts"
    prompted.save(path)
    with pytest.raises(DataError, match=r"learned for the weights .* Give that teacher"):
        PromptedTeacher.load(path, teacher(seed=1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        PromptedTeacher.load(path, prompted.base)
    path.write_bytes(prompting.write_tensors({"other": np.zeros(2)}, {}))
    with pytest.raises(DataError, match="expected vlkd-learned-prompts/1"):
        PromptedTeacher.load(path, prompted.base)


def test_text_towers_that_take_no_prompts_are_refused() -> None:
    own = teacher(CNN, {"embed_cls": True}, custom=True)
    with pytest.raises(ConfigError, match="expected a CLIP text transformer with CLIP's own tokenizer"):
        TextTower.of(own)
    other = teacher(CNN)
    other._tokenizer = lambda texts: torch.zeros(len(texts), 16).long()
    with pytest.raises(ConfigError, match="Prompts cannot be learned for it"):
        TextTower.of(other)


@pytest.mark.parametrize(
    ("words", "fits"), [pytest.param(9, True, id="just fits"), pytest.param(10, False, id="one too many")]
)
def test_a_name_too_long_beside_the_context_is_refused(
    words: int, fits: bool, prompted: PromptedTeacher
) -> None:
    # 16 places: start, 3 learned, the words, the full stop, end; eleven words would need 17.
    text = f"{LEARNED} {' '.join(['dog'] * (words + 1))}."
    if fits:
        assert np.isfinite(prompted.embed_texts([text])).all()
    else:
        with pytest.raises(ConfigError, match="longer than the 16 tokens"):
            prompted.embed_texts([text])


def test_the_demo_teacher_takes_learned_context() -> None:
    demo = OpenClipTeacher.load("demo")
    tower = TextTower.of(demo)
    words = demo._tokenizer(["a photo of a"])[0, 1:5]
    own = PromptedTeacher(demo, tower.owner.token_embedding(words)[None], None)
    rows = own.embed_texts([f"{LEARNED} dog"])
    assert np.abs(rows - demo.embed_texts(["a photo of a dog"])).max() < 1e-5
    assert not prompting.takes_visual_prompts(demo._model.visual)  # type: ignore[arg-type]
