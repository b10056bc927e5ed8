"""Images out of the demo teacher's gradients: it reads in them what was asked for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from vlkd_distill import class_vectors, inversion
from vlkd_distill.diversify import diversify
from vlkd_distill.inversion import Inversion, coefficients_of, paint, spectrum
from vlkd_distill.prompting import normalised
from vlkd_distill.synthspecs import InversionSettings
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_distill.wording import DEMO, Prompt
from vlkd_runtime.errors import ConfigError, UnavailableError

CLASSES = ("car", "cat", "tree", "umbrella")
SMALL = InversionSettings(size=32, steps=40, views=2, batch=4, learning_rate=0.1)


@pytest.fixture(scope="module")
def teacher() -> OpenClipTeacher:
    return OpenClipTeacher.load("demo")


@pytest.mark.parametrize("space", ["sentence", "token"])
def test_the_teacher_reads_the_class_in_the_image(space: str, teacher: OpenClipTeacher) -> None:
    rule = "single" if space == "sentence" else "mix"
    prompts = diversify(rule, space, CLASSES, 1, vocabulary=DEMO, teacher=teacher)
    images = list(Inversion(teacher, SMALL).synthesise(prompts, 0))
    assert [image.size for image in images] == [(32, 32)] * 4
    rows = teacher.embed_images(images)
    vectors = class_vectors.compute(teacher, CLASSES, ("a photo of a {}",)).vectors
    assert ((rows @ vectors.T).argmax(axis=1) == np.arange(4)).all()
    noise = list(Inversion(teacher, dataclasses.replace(SMALL, steps=1)).synthesise(prompts, 0))
    before = teacher.embed_images(noise)
    targets = np.stack(
        [p.target if p.target is not None else teacher.embed_texts([p.text])[0] for p in prompts]
    )
    assert ((rows * targets).sum(1) > (before * targets).sum(1) + 0.1).all()
    assert all(parameter.grad is None for parameter in teacher._model.parameters())


def test_a_seed_decides_and_settings_are_in_the_fingerprint(teacher: OpenClipTeacher) -> None:
    fast = dataclasses.replace(SMALL, steps=2, batch=2)
    prompts = diversify("single", "sentence", CLASSES[:3], 1)

    def drawn(settings: InversionSettings, seed: int) -> np.ndarray:
        return np.stack(
            [np.asarray(image) for image in Inversion(teacher, settings).synthesise(prompts, seed)]
        )

    assert (drawn(fast, 1) == drawn(fast, 1)).all()
    assert (drawn(fast, 1) != drawn(fast, 2)).any()
    prints = {Inversion(teacher, how).fingerprint for how in (fast, SMALL, InversionSettings())}
    assert len(prints) == 3


def test_the_gradient_goes_through_the_teachers_own_preparation(teacher: OpenClipTeacher) -> None:
    views = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rows = teacher._encode(normalised(teacher, views))
    assert np.abs(rows.detach().numpy() - teacher.embed_views(views.detach()).numpy()).max() < 1e-6
    rows.sum().backward()
    assert views.grad is not None and views.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_white_noise_through_the_spectrum_has_unit_variance(size: int, decay: float) -> None:
    # Each pixel's variance summed over the basis: the image of each unit coefficient, one at a time.
    envelope = inversion.spectrum(size, decay)
    assert envelope.shape == (size, size // 2 + 1) and (envelope > 0).all()
    total = torch.zeros(size, size, dtype=torch.float64)
    for part in (1.0, 1j):
        for row in range(size):
            basis = torch.zeros(size // 2 + 1, size, size // 2 + 1, dtype=torch.complex128)
            at = torch.arange(size // 2 + 1)
            basis[at, row, at] = part * envelope[row].to(torch.complex128)
            total += torch.fft.irfft2(basis, s=(size, size), norm="ortho").square().sum(0)
    assert float(total.mean()) == pytest.approx(1.0, rel=1e-4)


def test_the_amplitude_falls_as_one_over_the_frequency() -> None:
    envelope = inversion.spectrum(32, 1.5)
    for down, across in ((0, 4), (3, 4), (16, 16), (29, 2)):
        frequency = math.hypot(min(down, 32 - down), across)
        assert float(envelope[down, across] / envelope[0, 1]) == pytest.approx(frequency**-1.5, rel=1e-4)
    assert envelope[0, 0] == envelope[0, 1]


def test_no_coefficient_is_grey_and_pixels_stay_between_black_and_white() -> None:
    envelope = inversion.spectrum(16, 1.0)
    grey = inversion.paint(torch.zeros(1, 3, 16, 9, 2), envelope)
    assert torch.equal(grey, torch.full((1, 3, 16, 16), 0.5))
    images = inversion.paint(
        3 * torch.randn(4, 3, 16, 9, 2, generator=torch.Generator().manual_seed(0)), envelope
    )
    assert 0 <= images.min() < 0.2 and 0.8 < images.max() <= 1
    channels = images.permute(1, 0, 2, 3).reshape(3, -1)
    assert (torch.corrcoef(channels) > 0.5).all()  # natural images' channels go together


def test_total_variation_is_the_mean_step_between_neighbours() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    across = [abs(float(images[n, c, y, x + 1] - images[n, c, y, x]))
              for n in range(2) for c in range(3) for y in range(4) for x in range(4)]  # fmt: skip
    down = [abs(float(images[n, c, y + 1, x] - images[n, c, y, x]))
            for n in range(2) for c in range(3) for y in range(3) for x in range(5)]  # fmt: skip
    expected = sum(across) / len(across) + sum(down) / len(down)
    assert float(inversion.total_variation(images)) == pytest.approx(expected, rel=1e-5)


def test_views_are_of_every_image_and_differ() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    views = inversion._views(images, InversionSettings(views=3, noise=0.0), rng)
    assert views.shape == (6, 3, 16, 16)
    for index, view in enumerate(views):  # of a flat image only contrast and brightness can change
        assert view.std() < 1e-5
        assert (view.mean() > 0.5) == bool(index % 2)
    assert len(torch.unique(views[:, 0, 0, 0])) == 6


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        (Prompt("car", None, None, "nothing"), "Expected a prompt in words for the synthesiser 'inversion'"),
        (
            Prompt("car", None, np.ones(7, np.float32), "other"),
            r"embeddings of size 128 .*found \(7,\) \(other\)",
        ),
    ],
    ids=["says nothing", "other teacher"],
)
def test_a_prompt_that_cannot_be_read_is_refused(
    prompt: Prompt, match: str, teacher: OpenClipTeacher
) -> None:
    with pytest.raises(ConfigError, match=match):
        next(Inversion(teacher, SMALL).synthesise([prompt], 0))


def test_a_black_box_is_refused() -> None:
    class Box:
        name, dim, fingerprint = "box", 8, "0"

    with pytest.raises(UnavailableError, match="through which gradients flow, found 'box', a Box"):
        Inversion(Box())


def test_coefficients_paint_the_image_they_are_taken_of() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    painted = paint(coefficients_of(images, 1.0), spectrum(16, 1.0))
    assert (painted - images).abs().max() < 1e-3


def test_an_image_is_redrawn_towards_a_text_from_what_it_is(teacher: OpenClipTeacher) -> None:
    scene = next(iter(Inversion(teacher, SMALL).synthesise(diversify("single", "sentence", ("cat",), 1), 0)))
    texts = ["a sketch of a cat", "a photo of a tree"]
    few = Inversion(teacher, dataclasses.replace(SMALL, steps=8))
    redrawn = list(few.restyle([scene, scene], texts, [5, 6]))
    assert [image.size for image in redrawn] == [(32, 32)] * 2
    wanted, before = teacher.embed_texts(texts), teacher.embed_images([scene])[0]
    after = teacher.embed_images(redrawn)
    assert ((after * wanted).sum(1) > wanted @ before + 0.05).all()
    own, other = (np.abs(np.asarray(image, float) - np.asarray(scene, float)).mean() for image in redrawn)
    assert own < 60 and other < 60  # noise would be as far away as any picture
    again = list(few.restyle([scene], texts[1:], [6]))
    assert (np.asarray(again[0]) == np.asarray(redrawn[1])).all()
