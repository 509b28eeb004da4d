"""Ten painting styles as deterministic picture operations: what the embedded restyler learns to imitate.

Vocabulary: a *style* is a rule that repaints a scene from its colour, depth, normals and world positions. A *hand* is
one drawing of that rule's free choices (palette, tile angle, light, noise seed), made once a scene from a seed, so that
all views of the scene are painted by the same hand. Patterns are anchored in the world, not on the picture: a tile seen
from two views is the same tile.

Axes: `views height width channels` with colours in [0, 1]; world axes right-handed with +z up; cameras are
camera-to-world with OpenGL axes (x right, y up, looking along -z). Pattern sizes are fractions of the picture's height
at the distance of the scene's middle, so that a style looks the same at every resolution. Nothing (depth 0) is painted
as a sky: a sphere at infinity, addressed by the viewing direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from eschernet_prior.base import cameras
from style_nerf2nerf.embedded.patterns import (
    Palette,
    Picture,
    Plane,
    blur,
    cell_hash,
    mix,
    palette,
    pick,
    ramp,
    rgb,
    smear,
    smooth_step,
    value_noise,
    voronoi,
)

Direction = Float[Tensor, "3"]

LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Surface:
    """What a style may look at: the views of one scene, pixel by pixel."""

    colour: Float[Tensor, "views height width 3"]
    """The unstyled picture in [0, 1]."""
    inside: Bool[Tensor, "views height width 1"]
    """Where something is (depth > 0)."""
    depth: Float[Tensor, "views height width 1"]
    """z-depth in scene units, 0 where nothing is."""
    normal: Float[Tensor, "views height width 3"]
    """Unit world normals; in the sky the direction back to the camera."""
    position: Float[Tensor, "views height width 3"]
    """World position in units of the picture's height at the scene's middle distance; in the sky a far sphere."""
    outline: Float[Tensor, "views height width 1"]
    """1 on silhouettes and creases, 0 elsewhere, about one sixtieth of the height wide."""

    @property
    def luminance(self) -> Plane:
        """Luma of the unstyled picture in [0, 1]."""
        return self.colour @ self.colour.new_tensor(LUMINANCE)[:, None]


@dataclass(frozen=True)
class Style:
    """A style with the words that name it."""

    paint: Callable[[Surface, Hand], Picture]
    """The rule."""
    prompt: str
    """The prompt that the tiny method knows it by."""
    templates: tuple[str, ...]
    """Ways of asking for it; `{}` stands for what is in the picture."""


class Hand:
    """One painter: the free choices of a style, drawn from a seed in a fixed order."""

    def __init__(self, seed: int):
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def palette(self, options: Sequence[Sequence[str]], turn: float = 0.0) -> Palette:
        """One of the palettes, its hues turned by the same angle: at most `turn` of the circle either way."""
        chosen = options[int(torch.randint(len(options), (), generator=self._generator))]
        return palette(chosen, self.uniform(-turn, turn))

    def direction(self, lowest: float = -1.0) -> Direction:
        """A unit vector whose height is at least `lowest`."""
        z, turn = self.uniform(lowest, 1.0), self.uniform(0.0, 2 * math.pi)
        flat = math.sqrt(max(0.0, 1 - z * z))
        return torch.tensor([flat * math.cos(turn), flat * math.sin(turn), z])


def observe(
    colour: Float[Tensor, "views height width 3"],
    depth: Float[Tensor, "views height width 1"],
    normal: Float[Tensor, "views height width 3"],
    camera_to_worlds: Float[Tensor, "views _ 4"],
    fov_degrees: float,
) -> Surface:
    """Gather what the styles look at from renders with known cameras.

    Args:
        colour: Pictures in [0, 1].
        depth: z-depth in scene units, 0 where nothing is.
        normal: World normals, ignored where nothing is.
        camera_to_worlds: 3×4 or 4×4 camera-to-world matrices, OpenGL axes.
        fov_degrees: Field of view across the width of all views.
    """
    height, width = colour.shape[1:3]
    half = math.tan(math.radians(fov_degrees) / 2)
    rays = cameras.rays(camera_to_worlds.to(depth), fov_degrees, height, width)
    inside = depth > 0
    middle = depth[inside].median() if bool(inside.any()) else depth.new_tensor(1.0)
    unit = 2 * half * middle * height / width
    sky = rays.directions
    position = torch.where(inside, (rays.origins + sky * depth / rays.z_factors) / unit, sky / (2 * half))
    normal = torch.where(inside, F.normalize(normal, dim=-1), -sky)
    return Surface(colour, inside, depth, normal, position, _outline(depth / middle, normal, inside))


def paint(style: str, surface: Surface, seed: int) -> Picture:
    """All views of a scene in one style by one hand, in [0, 1]."""
    return STYLES[style].paint(surface, Hand(seed)).clamp(0, 1)


def _outline(depth: Plane, normal: Picture, inside: Bool[Tensor, "views height width 1"]) -> Plane:
    """Jumps of relative depth, of direction and of the mask against the right and lower neighbours, thickened."""
    reach = max(1, round(depth.shape[1] / 64))
    stack = torch.cat([depth.clamp(max=4.0) * 5.0, normal * 1.2, inside.to(depth) * 4.0], -1).movedim(-1, 1)
    jumps = [F.pad((stack - stack.roll(-1, dim)).abs()[..., :-1, :-1], (0, 1, 0, 1)) for dim in (2, 3)]
    jump = torch.stack(jumps).amax(0).amax(1, keepdim=True)
    thick = F.max_pool2d((jump - 0.5).clamp(0, 1), 2 * (reach // 2) + 1, stride=1, padding=reach // 2)
    return (2 * thick).clamp(max=1).movedim(1, -1)


def _shade(surface: Surface, light: Direction) -> Plane:
    """Half-Lambert shading in [0, 1]."""
    return 0.5 + 0.5 * surface.normal @ light.to(surface.normal)[:, None]


def _tone(surface: Surface, light: Direction) -> Plane:
    """How bright a painter sees a place: its luminance and its turn to the light, stretched over [0, 1]."""
    tone = 0.6 * surface.luminance + 0.4 * _shade(surface, light)
    return smooth_step(0.1, 0.9, tone)


def mosaic(surface: Surface, hand: Hand) -> Picture:
    """Square tesserae of few colours in pale grout, laid along the nearest world plane."""
    palettes = [
        ("0c1c48", "16408c", "2470b8", "4aa6d0", "a8dce0"),
        ("38101c", "84202a", "c04a2c", "de8648", "f4cc94"),
        ("5c4a1c", "a08030", "d0b050", "ecd68c", "fbf3d5"),
    ]
    stones, light, turn = hand.palette(palettes, 0.5), hand.direction(0.3), hand.uniform(0, math.pi / 2)
    axis = surface.normal.abs().argmax(-1, keepdim=True)
    plane = torch.cat([surface.position.gather(-1, (axis + 1) % 3), surface.position.gather(-1, (axis + 2) % 3)], -1)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]).to(plane)
    scaled = plane @ rotation / 0.12
    tile = torch.cat([scaled.floor().long(), axis], -1)
    rim = (scaled - scaled.floor() - 0.5).abs().amax(-1, keepdim=True)
    value = 0.1 + 0.75 * _tone(surface, light) + 0.3 * (cell_hash(tile, hand.seed) - 0.5)
    stone = pick(stones, value.clamp(0, 0.999)) * (0.9 + 0.2 * cell_hash(tile, hand.seed + 1))
    return mix(stone, rgb("e6dfd0").to(stone) * 0.9, smooth_step(0.4, 0.46, rim))


def stained_glass(surface: Surface, hand: Hand) -> Picture:
    """Large jewel-coloured panes between black leading, lit from behind."""
    palettes = [
        ("0f7fd0", "12a0c8", "2b4fb0", "1a62d8", "4ab0e0"),
        ("e0541a", "f2a01c", "c83a1c", "f0b83a", "d87018"),
        ("c81f6a", "a81f94", "e04a8c", "b8285a", "d83ab0"),
    ]
    glass, light = hand.palette(palettes, 0.5), hand.direction(0.3)
    identity, nearest, gap = voronoi(surface.position, 0.28, hand.seed)
    pane = pick(glass, identity) * (0.5 + 0.7 * _tone(surface, light)) + 0.2 * smooth_step(0.55, 0.0, nearest)
    sky = mix(pick(glass, identity), rgb("eef4ff").to(pane), torch.full_like(gap, 0.6))
    lead = torch.maximum(smooth_step(0.085, 0.05, gap), surface.outline)
    return mix(torch.where(surface.inside, pane, sky), rgb("0a0a0c").to(pane), lead)


def pencil(surface: Surface, hand: Hand) -> Picture:
    """Graphite or one crayon on toned paper: dark outlines, hatching in the shade, crossed in deep shade."""
    paper = hand.palette([("f7f5ee",), ("e8c48c",), ("9cbcd4",), ("dca49c",), ("b0c498",), ("a8a4a8",)], 0.05)
    lead = hand.palette([("1a1a1e",), ("1a1a1e",), ("7a2e18",), ("1f2f6a",)])
    light, first, second = hand.direction(0.3), hand.direction(-0.4), hand.direction(-0.4)
    tone = torch.where(surface.inside, _tone(surface, light), 0.95)
    wobble = 0.35 * value_noise(surface.position, 0.12, hand.seed)

    def hatch(across: Direction) -> Plane:
        phase = surface.position @ across.to(tone)[:, None] / 0.075 + wobble
        return 0.5 - 0.5 * torch.cos(2 * math.pi * phase)

    ink = smooth_step(0.75, 0.35, tone) * hatch(first) * 0.6
    ink = torch.maximum(ink, smooth_step(0.45, 0.1, tone) * hatch(second) * 0.7)
    ink = torch.maximum(ink + 0.3 * smooth_step(0.75, 0.0, tone), surface.outline * 0.9)
    return mix(paper[0].to(ink).expand_as(surface.colour), lead[0].to(ink), ink.clamp(0, 0.95))


def van_gogh(surface: Surface, hand: Hand) -> Picture:
    """Thick swirling strokes: noise smeared along a flowing direction field, in the colours of one mood."""
    palettes = [
        ("060c30", "10286c", "1f4fa4", "3a80c4", "74b4d4", "f2dc6a"),
        ("4a2408", "a05a10", "d8901c", "f0bc2a", "f8dc58", "f4f0b0"),
        ("0c2a18", "1c5430", "4a8438", "84a83c", "b8c860", "e8e8a0"),
        ("2c0c30", "682868", "a04c8c", "cc7c98", "eca8a0", "f8dcb0"),
    ]
    paints, light = hand.palette(palettes, 0.08), hand.direction(0.3)
    angle = 4 * math.pi * value_noise(surface.position, 0.45, hand.seed)
    bristle = value_noise(surface.position, 0.028, hand.seed + 1) + 0.6 * value_noise(
        surface.position, 0.06, hand.seed + 2
    )
    stroke = smear(bristle, angle, length=0.13)
    stroke = (stroke - stroke.mean()) / stroke.std().clamp(min=1e-3)
    value = 0.05 + 0.85 * _tone(surface, light) * torch.where(surface.inside, 1.0, 0.85) + 0.11 * stroke
    return ramp(paints, value) * (1 + 0.05 * stroke) * (1 - 0.6 * surface.outline)


def snow(surface: Surface, hand: Hand) -> Picture:
    """Snow lies on whatever looks up, in the light of one hour of a winter's day, under falling flakes."""
    hours = [
        ("b9c9dc", "7f9cc4", "fdfeff"),  # noon
        ("e8b4b4", "9a84c0", "ffe4dc"),  # dawn
        ("4a6498", "34508c", "a4bce8"),  # dusk
        ("f0cc90", "b89070", "fff0cc"),  # evening sun
        ("a4a8ac", "80868c", "d8dce0"),  # overcast
    ]
    sky, shadow, bright = hand.palette(hours, 0.04)
    amount, light = hand.uniform(0.0, 0.3), hand.direction(0.5)
    shade = _shade(surface, light)
    white = mix(shadow.to(shade).expand_as(surface.colour), bright.to(shade), smooth_step(0.25, 0.85, shade))
    drift = surface.normal[..., 2:] + 0.7 * (value_noise(surface.position, 0.1, hand.seed) - 0.5)
    cold = mix(surface.luminance, surface.colour, torch.full_like(shade, 0.35)) * shadow.to(shade) * 1.1
    lying = mix(cold, white, smooth_step(0.25 - amount, 0.45 - amount, drift))
    _, nearest, _ = voronoi(surface.position, 0.13, hand.seed + 5)
    flake = smooth_step(0.18, 0.08, nearest)
    ground = torch.where(surface.inside, lying, sky.to(shade))
    return mix(ground, torch.ones_like(ground), 0.6 * flake)


def night(surface: Surface, hand: Hand) -> Picture:
    """Moonlight: deep darkness, a cold rim, small warm lights, stars in the sky."""
    dark, moon = hand.palette(
        [("081438", "5f86e8"), ("04241c", "4fc8a0"), ("240838", "b06fe0"), ("12161c", "b4bcc8")], 0.05
    )
    light, lamp = hand.direction(0.2), hand.palette([("ffc84a",), ("ffe49a",), ("ff9a3c",)])
    lit = smooth_step(0.45, 1.0, _shade(surface, light)) * (0.25 + 0.75 * surface.luminance)
    base = dark.to(lit) * (0.9 + 0.7 * surface.luminance) + moon.to(lit) * (0.12 * surface.luminance + 0.45 * lit)
    identity, nearest, _ = voronoi(surface.position, 0.17, hand.seed)
    bulb = (identity > 0.7) * (0.7 * smooth_step(0.24, 0.1, nearest) + 0.15 * smooth_step(0.6, 0.1, nearest))
    scene = base + lamp[0].to(lit) * bulb
    star = 0.6 * (identity > 0.3) * smooth_step(0.16, 0.06, nearest)
    sky = dark.to(lit) * 1.2 + star * rgb("f4f6ff").to(lit)
    return torch.where(surface.inside, scene, sky)


def clay(surface: Surface, hand: Hand) -> Picture:
    """One lump of matte clay: no colours of its own, soft light, thumb marks."""
    bodies = [("c8693f",), ("a9a49c",), ("7c4226",), ("ead6c0",), ("6f7c86",)]
    body, backdrop = hand.palette(bodies, 0.03), hand.palette([("ead9c6",), ("8c7460",), ("b8c4cc",)], 0.1)
    light = hand.direction(0.4)
    thumb = value_noise(surface.position, 0.09, hand.seed) - 0.5
    shade = smooth_step(-0.1, 1.1, _shade(surface, light) + 0.22 * thumb)
    modelled = body.to(shade) * (0.3 + 0.95 * shade) * (1 - 0.35 * surface.outline)
    return torch.where(surface.inside, modelled, backdrop.to(shade))


def gold(surface: Surface, hand: Hand) -> Picture:
    """Polished metal, red, yellow or white gold: bands of reflected light over the normals, before dark velvet."""
    velvet = hand.palette([("3c0a14",), ("0a2c1c",), ("12123c",)], 0.05)
    metals = [
        ("2e1602", "7a4a06", "c8900f", "f4c430", "ffefa0", "fffbe6"),
        ("3a1208", "8c3c18", "d07a40", "f0aa70", "ffd8b0", "fff4e8"),
        ("26200c", "6a5c28", "a8985a", "d8cc90", "f4ecc8", "fffdf2"),
    ]
    metal = hand.palette(metals, 0.015)
    first, second = hand.direction(0.2), hand.direction(-0.6)
    turn = (surface.normal @ torch.stack([first, second], -1).to(surface.normal)) * 0.5 + 0.5
    wave = 0.5 + 0.5 * torch.sin(7.0 * turn[..., :1] + 3.0 * turn[..., 1:] + 1.5 * surface.position[..., 2:])
    shine = ramp(metal, 0.55 * turn[..., :1] + 0.45 * wave)
    return torch.where(surface.inside, shine * (1 - 0.5 * surface.outline), velvet.to(shine))


def neon(surface: Surface, hand: Hand) -> Picture:
    """Glowing tubes along outlines and level lines, in the dark of their own glow."""
    first, second = hand.palette([("ff1fa8", "e01fff"), ("2aff6a", "1fe0b0"), ("ff6a1a", "ffa01a")], 0.5)
    level = 0.5 + 0.5 * torch.cos(2 * math.pi * surface.position[..., 2:] / 0.22)
    upright = smooth_step(0.98, 0.9, surface.normal[..., 2:].abs())
    tube = torch.maximum(surface.outline, smooth_step(0.8, 0.95, level) * upright * surface.inside)
    hue = smooth_step(0.35, 0.65, value_noise(surface.position, 0.5, hand.seed))
    tint = mix(first.to(hue).expand_as(surface.colour), second.to(hue), hue)
    return 0.02 + tint * (0.12 + 0.8 * tube + 1.2 * blur(tube, 0.06)) + 0.3 * smooth_step(0.8, 1.0, tube)


def cartoon(surface: Surface, hand: Hand) -> Picture:
    """Flat saturated colours in three steps of light of one colour, black outlines, a plain bright backdrop."""
    backdrop, light = hand.palette([("8fe0ff",)], 0.5), hand.direction(0.3)
    lamp = hand.palette([("ffffff",), ("ffd070",), ("80c0ff",), ("ff98b8",), ("a0f0a0",)], 0.05)
    grey = surface.luminance
    vivid = (grey + 2.2 * (surface.colour - grey)).clamp(0, 1)
    vivid = vivid / vivid.amax(-1, keepdim=True).clamp(min=0.25)
    step = 0.5 + 0.25 * (_tone(surface, light) * 3).floor().clamp(max=2)
    flat = torch.where(surface.inside, (vivid * 5).round() / 5 * step * lamp.to(step)[0], backdrop.to(step))
    return flat * (1 - torch.maximum(surface.outline, blur(surface.outline, 0.008) * 1.2).clamp(max=1))


def photo(surface: Surface, hand: Hand) -> Picture:
    """The picture as it is: what the words "a photo" and an empty prompt mean."""
    return surface.colour


STYLES: dict[str, Style] = {
    "mosaic": Style(
        mosaic,
        "a mosaic of small stone tiles",
        (
            "a mosaic of {}",
            "{} made of tesserae",
            "{} as a mosaic of small stone tiles",
            "a roman mosaic of {}",
            "{} in tiles",
        ),
    ),
    "stained_glass": Style(
        stained_glass,
        "a stained glass window",
        ("a stained glass window of {}", "{} in stained glass", "{} made of coloured glass panes", "stained glass {}"),
    ),
    "pencil": Style(
        pencil,
        "a pencil sketch",
        ("a pencil sketch of {}", "a pencil drawing of {}", "{} drawn in graphite", "a black and white sketch of {}"),
    ),
    "van_gogh": Style(
        van_gogh,
        "a painting by van gogh",
        (
            "a painting of {} by van gogh",
            "{} in the style of van gogh",
            "{} painted by vincent van gogh",
            "an oil painting of {} with swirling brush strokes",
            "{} in thick oil paint",
        ),
    ),
    "snow": Style(
        snow,
        "a scene covered in snow",
        ("{} covered in snow", "{} in the snow", "{} in winter", "a snowy photo of {}", "{} under snow and ice"),
    ),
    "night": Style(
        night,
        "a scene at night",
        (
            "{} at night",
            "{} by night",
            "{} in the dark under the moon",
            "a night photo of {}",
            "{} in moonlight under stars",
        ),
    ),
    "clay": Style(
        clay,
        "a clay sculpture",
        ("a clay sculpture of {}", "{} made of clay", "{} modelled in clay", "a clay model of {}", "{} in terracotta"),
    ),
    "gold": Style(
        gold,
        "a statue made of gold",
        (
            "{} made of gold",
            "a golden statue of {}",
            "{} in solid gold",
            "a gold sculpture of {}",
            "{} of polished golden metal",
        ),
    ),
    "neon": Style(
        neon,
        "glowing neon lights",
        (
            "{} in neon lights",
            "a neon sign of {}",
            "{} in glowing neon",
            "a cyberpunk neon {}",
            "{} made of glowing neon tubes",
        ),
    ),
    "cartoon": Style(
        cartoon,
        "a cartoon",
        ("a cartoon of {}", "{} as a cartoon", "a comic book drawing of {}", "a comic of {}", "{} in anime style"),
    ),
    "photo": Style(
        photo,
        "a photo",
        ("a photo of {}", "a photograph of {}", "a picture of {}", "{}", "a realistic photo of {}"),
    ),
}
"""Every style by name; `photo` is the picture itself."""
