"""The papers' losses and measures: which test holds which property, and that it fails for the mistake it is there for.

A row names a property, the mistake that breaks it (most were found in published code), and the tests that must notice.
Each test is run with the mistake in place; one that passes all the same holds nothing.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlkd_bench import alignment
from vlkd_distill import averaging, class_vectors, data, losses, templates
from vlkd_runtime.errors import DataError
from vlkd_runtime.vectors import ClassVectors

TESTS = Path(__file__).parents[1]
Patch = Callable[[pytest.MonkeyPatch], None]

KL, VL2V, MSE = losses.soft_divergence, losses.vl2v, losses.unit_distance
NEAR, MEASURE = losses.language_proximity, alignment.measure
VALLEY = [9.0, 5.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.0, 6.0, 8.0, 9.0, 9.0, 9.0, 9.0]
ROWS = np.random.default_rng(1).standard_normal((3, 8))
VECTORS = ClassVectors(
    ("a", "b", "c"),
    (ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)).astype(np.float32),
    ((), (), ()),
    (),
    "test",
    "0" * 64,
    10.0,
)


def instead(module: ModuleType, name: str, mistake: Any) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(module, name, mistake)


def raw(vectors: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return vectors.float()


def probabilities_for_logs(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The defect of a published baseline: ``kl_div`` of probabilities, with its default reduction."""
    own, goal = (F.softmax(x.float() / temperature, -1) for x in (student, teacher.detach()))
    with pytest.warns(UserWarning, match="batchmean"):
        return temperature**2 * F.kl_div(own, goal)


def dot_with_texts(p: torch.Tensor, v: torch.Tensor, u: torch.Tensor, weight: float) -> torch.Tensor:
    """The logit scale of 100 on the class vectors, and a product in place of the cosine."""
    own = losses.unit(p)
    return -(weight * (own * losses.unit(v)).sum(-1) + (1 - weight) * (own * u).sum(-1)).mean()


def unfiltered(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    return NEAR(student, teacher, teacher.argmax(-1), k)


def mean_of_none(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    right = teacher.argmax(-1) == labels
    return NEAR(student, teacher, labels, k) * right.sum().clamp(min=1) / right.sum()


def one_way(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    similarity = losses.unit(student) @ losses.unit(teacher).t() / temperature
    return F.cross_entropy(similarity, torch.arange(len(similarity)))


def unnormalised_mean(teacher: Any, texts: Any) -> Any:
    return np.asarray([teacher.embed_texts(own).mean(axis=0) for own in texts], np.float32)


def case(file: str, name: str, **arguments: Any) -> tuple[str, str, dict[str, Any]]:
    return file, name, arguments


CHECKS: dict[str, tuple[Patch, tuple[tuple[str, str, dict[str, Any]], ...]]] = {
    "VL2V is invariant to the scale of the text bank": (
        instead(losses, "vl2v", dot_with_texts),
        (
            case("distill/test_losses.py", "test_vl2v_does_not_see_the_scale_of_the_class_vectors"),
            case("distill/test_losses.py", "test_vl2v_is_minus_one_when_all_agree"),
        ),
    ),
    "VL2V turns without stretching": (
        instead(losses, "unit", raw),
        (
            case("distill/test_losses.py", "test_vl2v_gradient_turns_without_stretching"),
            case("distill/test_losses.py", "test_vl2v_is_the_weighted_negative_cosine", weight=0.5),
        ),
    ),
    "VL2V's lambda weights the image": (
        instead(losses, "vl2v", lambda p, v, u, w: VL2V(p, v, u, 1 - w)),
        (case("distill/test_losses.py", "test_vl2v_is_the_weighted_negative_cosine", weight=0.1),),
    ),
    "KL goes from teacher to student": (
        instead(losses, "soft_divergence", lambda s, t, T: KL(t, s, T)),
        (
            case("distill/test_losses.py", "test_soft_divergence_goes_from_teacher_to_student"),
            case(
                "distill/test_losses.py", "test_naive_distillation_mixes_labels_and_soft_labels", weight=0.3
            ),
            case(
                "distill/test_methods.py",
                "test_promptkd_is_the_weighted_divergence_from_the_teacher_whatever_the_labels",
                weight=1.0,
                vectors=VECTORS,
            ),
        ),
    ),
    "KL takes logarithms": (
        instead(losses, "soft_divergence", probabilities_for_logs),
        (case("distill/test_losses.py", "test_soft_divergence_goes_from_teacher_to_student"),),
    ),
    "KL is a mean over samples, and PromptKD's weight one number": (
        instead(losses, "soft_divergence", lambda s, t, T: KL(s, t, T) / s.shape[-1]),
        (
            case(
                "distill/test_losses.py",
                "test_soft_divergence_is_the_mean_over_samples_times_the_squared_temperature",
                temperature=1.0,
            ),
            case(
                "distill/test_methods.py",
                "test_promptkd_is_the_weighted_divergence_from_the_teacher_whatever_the_labels",
                weight=1000 / 3,
                vectors=VECTORS,
            ),
        ),
    ),
    "T squared keeps the size of the gradient": (
        instead(losses, "soft_divergence", lambda s, t, T: KL(s, t, T) / T**2),
        (
            case(
                "distill/test_losses.py",
                "test_soft_divergence_is_the_mean_over_samples_times_the_squared_temperature",
                temperature=4.0,
            ),
            case(
                "distill/test_losses.py",
                "test_the_gradient_of_the_soft_divergence_has_the_same_size_at_every_temperature",
            ),
        ),
    ),
    "L_mse is two minus two cosines": (
        instead(losses, "unit", raw),
        (case("distill/test_losses.py", "test_unit_distance_is_two_minus_two_cosines_whatever_the_lengths"),),
    ),
    "L_mse sums over dimensions": (
        instead(losses, "unit_distance", lambda s, t: MSE(s, t) / s.shape[-1]),
        (case("distill/test_losses.py", "test_unit_distance_is_two_minus_two_cosines_whatever_the_lengths"),),
    ),
    "L_im-cst looks both ways": (
        instead(losses, "image_contrast", one_way),
        (
            case(
                "distill/test_losses.py", "test_image_contrast_by_hand_is_symmetric_and_zero_for_clear_pairs"
            ),
        ),
    ),
    "L_im-cst is of unit vectors": (
        instead(losses, "unit", raw),
        (
            case(
                "distill/test_losses.py", "test_image_contrast_by_hand_is_symmetric_and_zero_for_clear_pairs"
            ),
        ),
    ),
    "L_vlprox looks where the teacher is right": (
        instead(losses, "language_proximity", unfiltered),
        (
            case(
                "distill/test_losses.py",
                "test_language_proximity_looks_at_the_teachers_nearest_texts_where_it_is_right",
                k=4,
            ),
            case(
                "distill/test_losses.py",
                "test_language_proximity_is_zero_and_finite_where_the_teacher_is_always_wrong",
            ),
        ),
    ),
    "L_vlprox is finite where the teacher is always wrong": (
        instead(losses, "language_proximity", mean_of_none),
        (
            case(
                "distill/test_losses.py",
                "test_language_proximity_is_zero_and_finite_where_the_teacher_is_always_wrong",
            ),
        ),
    ),
    "L_vlprox takes the teacher's nearest, all where k is large": (
        instead(
            losses, "language_proximity", lambda s, t, y, k: NEAR(s, t, y, max(1, min(k, t.shape[-1]) - 1))
        ),
        (
            case("distill/test_losses.py", "test_language_proximity_of_all_classes_is_the_whole_divergence"),
            case(
                "distill/test_losses.py",
                "test_language_proximity_looks_at_the_teachers_nearest_texts_where_it_is_right",
                k=2,
            ),
        ),
    ),
    "L_cap spares captions of the same class": (
        instead(losses, "caption_contrast", lambda s, c, y, tau: one_way(s, c.detach(), tau)),
        (
            case(
                "distill/test_captions.py",
                "test_an_image_is_to_find_its_own_caption",
                labels=[0, 1, 0, 1],
                tau=1.0,
            ),
        ),
    ),
    "M_rel, M_neigh and M_vlalign are what loops say": (
        instead(alignment, "measure", lambda s, t, *rest, **options: MEASURE(t, s, *rest, **options)),
        (case("benchmarks/test_alignment.py", "test_every_measure_is_what_slow_loops_say", noise=1.0),),
    ),
    "SWAD averages the valley": (
        instead(averaging, "Swad", averaging.SecondHalf),
        (
            case(
                "distill/test_averaging.py",
                "test_swad_averages_the_valley",
                losses=VALLEY,
                expected=range(3, 9),
            ),
            case(
                "distill/test_averaging.py",
                "test_swad_averages_the_valley",
                losses=[1.0] * 9,
                expected=range(9),
            ),
        ),
    ),
    "A class vector is normalised again after the mean": (
        instead(class_vectors, "embed_prompts", unnormalised_mean),
        (
            case(
                "distill/test_class_vectors.py",
                "test_attributes_are_averaged_over_every_template_and_attribute",
            ),
        ),
    ),
    "Class vectors stand in the order of the names": (
        instead(class_vectors, "prompts", lambda names, *rest: templates.prompts(names, *rest)[::-1]),
        (
            case(
                "distill/test_class_vectors.py",
                "test_attributes_are_averaged_over_every_template_and_attribute",
            ),
        ),
    ),
    "No held-out image is in a source split": (
        instead(data, "source_domains", lambda domains, *rest, **options: tuple(domains)),
        (case("distill/test_data.py", "test_no_held_out_image_is_in_any_source_split"),),
    ),
    "A split depends on the image's name alone": (
        instead(data, "split_of", lambda image: "test" if len(image) % 5 == 0 else "train"),
        (case("distill/test_data.py", "test_split_is_the_hash_of_the_name_alone"),),
    ),
}


def run(file: str, name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """Call a test of another module, loaded anew so that it sees what is patched."""
    spec = importlib.util.spec_from_file_location(f"checked_{Path(file).stem}", TESTS / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test = getattr(module, name)
    wanted = inspect.signature(test).parameters
    test(**arguments, **({"tmp_path": tmp_path} if "tmp_path" in wanted else {}))


@pytest.mark.parametrize("name", CHECKS)
def test_a_property_is_held_by_tests_that_fail_without_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    patch, tests = CHECKS[name]
    for number, (file, test, arguments) in enumerate(tests):
        (tmp_path / f"{number}-whole").mkdir()
        run(file, test, arguments, tmp_path / f"{number}-whole")
        (tmp_path / f"{number}-broken").mkdir()
        with monkeypatch.context() as broken:
            patch(broken)
            with pytest.raises((AssertionError, DataError)):  # or the product itself refuses
                run(file, test, arguments, tmp_path / f"{number}-broken")
