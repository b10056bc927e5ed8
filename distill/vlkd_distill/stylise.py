"""Other styles of an image, drawn from the image alone: the views on which a student meets unseen domains.

A style changes texture, colour and line and keeps the shape. Nothing is taken from any other image, so a
view of a source image can never show something of a held-out domain.

Letters used in shapes: S pixels a side, r filter radius.

References:
    contours: Canny, "A Computational Approach to Edge Detection", PAMI 1986: crests of the gradient, weak ones only
    where they go on from strong ones.
    edges: Winnemoeller et al., "XDoG: An eXtended difference-of-Gaussians compendium", Computers & Graphics
    2012, equations 3 to 7.
    paint: Kuwahara et al., "Processing of RI-angiocardiographic images", 1976: of four windows around a pixel,
    the mean of the one that varies least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)

Style = Callable[[Tensor, torch.Generator], Tensor]


def grey(image: Tensor, generator: torch.Generator) -> Tensor:
    """No colour, another exposure and contrast."""
    curve = _between(0.6, 1.6, generator)
    return _luma(image).clamp(0, 1).pow(curve).expand(3, -1, -1)


def pencil(image: Tensor, generator: torch.Generator) -> Tensor:
    """Shaded drawing on paper: brightness relative to its surroundings."""
    luma = _luma(image)
    around = _blur(luma, _between(0.012, 0.04, generator) * image.shape[-1])
    lines = (luma / around.clamp(min=0.02)).clamp(0, 1)
    return lines.pow(_between(1.5, 5.0, generator)).expand(3, -1, -1)


def edges(image: Tensor, generator: torch.Generator) -> Tensor:
    """Outlines only, dark on white: a thresholded difference of Gaussians."""
    sigma = _between(0.004, 0.01, generator) * image.shape[-1]
    luma = _luma(image)
    difference = _blur(luma, sigma) - 0.98 * _blur(luma, 1.6 * sigma)
    limit = _between(-0.005, 0.008, generator)
    sharpness = _between(40.0, 200.0, generator)
    lines = torch.where(difference >= limit, 1.0, 1.0 + torch.tanh(sharpness * (difference - limit)))
    return lines.clamp(0, 1).expand(3, -1, -1)


def contours(image: Tensor, generator: torch.Generator) -> Tensor:
    """Sketch by a few thin lines, smaller or larger on white paper: no shading, and gaps where nothing stands out."""
    side = image.shape[-1]
    flat = _kuwahara(image, max(1, round(_between(0.01, 0.03, generator) * side)))
    crests = _crests(_blur(flat, _between(0.006, 0.014, generator) * side))
    strong, weak = _between(0.15, 0.35, generator), _between(0.4, 0.6, generator)
    lines = _joined(*(crests >= _least(crests, part) for part in (strong, weak))).float()
    width = round(_between(0.0025, 0.0068, generator) * side)
    ink = _blur(F.max_pool2d(lines, 2 * width + 1, 1, width), 0.0026 * side)
    paper = 1.0 - _between(0.6, 1.0, generator) * ink.clamp(0, 1)
    return _smaller(paper, generator).expand(3, -1, -1)


def poster(image: Tensor, generator: torch.Generator) -> Tensor:
    """Few flat, strong colours with dark outlines, as a cartoon has."""
    flat = _kuwahara(image, max(1, round(_between(0.01, 0.025, generator) * image.shape[-1])))
    levels = round(_between(3.0, 6.0, generator))
    flat = _saturate(flat, _between(1.2, 2.2, generator))
    flat = (flat * (levels - 1)).round() / (levels - 1)
    return flat * edges(image, generator)


def paint(image: Tensor, generator: torch.Generator) -> Tensor:
    """Brush strokes: patches of one colour that end at edges, on a grained ground."""
    strokes = _kuwahara(image, max(2, round(_between(0.012, 0.035, generator) * image.shape[-1])))
    strokes = _saturate(strokes, _between(0.6, 1.6, generator))
    tint = (torch.rand(3, 1, 1, generator=generator) - 0.5) * 0.3
    grain = _noise(image.shape[-1], 1.0, generator) * _between(0.0, 0.06, generator)
    return (strokes + tint + grain).clamp(0, 1)


def palette(image: Tensor, generator: torch.Generator) -> Tensor:
    """Other colours and another surface: brightness mapped through random colours, over a random texture."""
    size = image.shape[-1]
    colours = torch.rand(4, 3, generator=generator)
    order = (colours @ _LUMA.view(3)).argsort(descending=bool(torch.rand(1, generator=generator) < 0.3))
    place = _luma(image)[0].clamp(0, 1) * 3
    low = place.floor().clamp(max=2).long()
    part = (place - low)[..., None]
    mapped = (1 - part) * colours[order][low] + part * colours[order][low + 1]
    amount = _between(0.3, 1.0, generator)
    mixed = amount * mapped.permute(2, 0, 1) + (1 - amount) * image
    texture = _noise(size, _between(0.5, 2.0, generator), generator) * _between(0.0, 0.2, generator)
    return (mixed + texture).clamp(0, 1)


STYLES: Mapping[str, Style] = MappingProxyType(
    {
        "grey": grey,
        "pencil": pencil,
        "edges": edges,
        "contours": contours,
        "poster": poster,
        "paint": paint,
        "palette": palette,
    }
)
"""Name to style: image ``(3, S, S)`` float32 in 0 to 1 and a source of randomness to the same shape."""


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def _luma(image: Tensor) -> Tensor:
    return (image * _LUMA).sum(0, keepdim=True)


def _saturate(image: Tensor, factor: float) -> Tensor:
    luma = _luma(image)
    return (luma + (image - luma) * factor).clamp(0, 1)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``(c, S, S)``; sigma in pixels."""
    radius = max(1, math.ceil(3 * sigma))
    at = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at / max(sigma, 1e-3)).square())
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    rows = F.conv2d(_pad(image[:, None], 0, radius), kernel[:, :, None, :])
    return F.conv2d(_pad(rows, radius, 0), kernel[:, :, :, None])[:, 0]


def _pad(images: Tensor, vertical: int, horizontal: int) -> Tensor:
    return F.pad(images, (horizontal, horizontal, vertical, vertical), mode="replicate")


def _kuwahara(image: Tensor, radius: int) -> Tensor:
    """Per pixel, the mean colour of that one of four ``(r + 1) x (r + 1)`` windows whose luma varies least."""
    luma = _luma(image)
    stack = torch.cat([image, luma, luma.square()])[:, None]
    means = F.avg_pool2d(_pad(stack, radius, radius), radius + 1, stride=1)[:, 0]
    side = image.shape[-1]
    windows = torch.stack(
        [means[:, top : top + side, left : left + side] for top in (0, radius) for left in (0, radius)]
    )
    variance = windows[:, 4] - windows[:, 3].square()
    best = variance.argmin(0)[None, None].expand(1, 3, -1, -1)
    return windows[:, :3].gather(0, best)[0]


def _crests(image: Tensor) -> Tensor:
    """Strength ``(1, S, S)`` of the change where no neighbour across the line has a stronger one; elsewhere zero."""
    slope = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    across = F.conv2d(_pad(image[:, None], 1, 1), torch.stack([slope, slope.t()])[:, None])  # (3, 2, S, S)
    strength = across.square().sum(1).sqrt()
    strongest = strength.argmax(0, keepdim=True)
    strength = strength.gather(0, strongest)
    right, down = across.gather(0, strongest[:, None].expand(-1, 2, -1, -1))[0]
    eighth = (torch.atan2(down, right) / (math.pi / 4)).round().long()[None] % 4
    around, side = _pad(strength[:, None], 1, 1)[:, 0], image.shape[-1]
    crests = torch.zeros_like(strength)
    for direction, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead, behind = (around[:, 1 + way * y :, 1 + way * x :][:, :side, :side] for way in (1, -1))
        crest = (eighth == direction) & (strength >= ahead) & (strength > behind)
        crests = torch.where(crest, strength, crests)
    return crests


def _least(crests: Tensor, part: float) -> float:
    """What the strongest part of the crests reach; above all of them where there is none to speak of."""
    found = crests[crests > 0.02]
    return float(torch.quantile(found, 1.0 - part)) if len(found) else math.inf


def _joined(strong: Tensor, weak: Tensor) -> Tensor:
    """The weak points ``(1, S, S)`` that hang together with strong ones, these included."""
    now, last = strong.float(), torch.zeros_like(strong, dtype=torch.float32)
    while not torch.equal(now, last):
        last, now = now, F.max_pool2d(now, 3, 1, 1) * weak
    return now.bool()


def _smaller(drawing: Tensor, generator: torch.Generator) -> Tensor:
    """The drawing ``(1, S, S)`` at half its size to all of it, somewhere on white paper."""
    side = drawing.shape[-1]
    small = round(side * min(1.0, _between(0.5, 1.2, generator)))
    reduced = F.interpolate(drawing[None], (small, small), mode="bilinear", antialias=True)[0]
    left, top = (round(_between(0.0, side - small, generator)) for _ in range(2))
    return F.pad(reduced, (left, side - small - left, top, side - small - top), value=1.0).clamp(0, 1)


def _noise(size: int, slope: float, generator: torch.Generator) -> Tensor:
    """Texture ``(1, S, S)`` of zero mean and unit deviation whose amplitude falls as frequency to ``-slope``."""
    spectrum = torch.fft.rfft2(torch.randn(size, size, generator=generator))
    vertical, horizontal = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    frequency = (vertical.square() + horizontal.square()).sqrt().clamp(min=1 / size)
    texture: Tensor = torch.fft.irfft2(spectrum / frequency**slope, s=(size, size))
    standard: Tensor = (texture - texture.mean()) / texture.std()
    return standard[None]
