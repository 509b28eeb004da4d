"""The procedural styles: deterministic, decided by a variation's colours and mood, and unlike each other."""

import random
import re
from dataclasses import replace

import pytest
import torch

from eschernet_prior.base import cameras
from style_nerf2nerf.embedded.colours import COLOURS, PAIRS, StyleVariation, draw_pair, draw_variation
from style_nerf2nerf.embedded.models import EMBEDDED, build_tokenizer
from style_nerf2nerf.embedded.patterns import blocks, blur, kuwahara, luminance
from style_nerf2nerf.embedded.prompts import COMMON_WORDS, SUBJECTS, draw_prompt, style_words
from style_nerf2nerf.embedded.styles import STYLES, paint
from style_nerf2nerf.embedded.surface import observe
from style_nerf2nerf.reprojection import ViewCameras, match, sample
from style_nerf2nerf.restyler.position import surface_points, waves

SIZE, LARGE, FOV = 48, 128, 49.0
POSES = cameras.orbit(12, 1.9, 25.0)[:2]
PAINTED = [name for name in STYLES if name != "photo"]


def ball_on_ground(poses: torch.Tensor, size: int):
    """A textured ball on a plane under an empty sky, intersected in closed form."""
    rays = cameras.rays(poses, FOV, size, size)
    origin, direction = rays.origins.expand_as(rays.directions), rays.directions
    along = (origin * direction).sum(-1, keepdim=True)
    reach = along**2 - (origin * origin).sum(-1, keepdim=True) + 0.5**2
    ball = torch.where(reach > 0, -along - reach.clamp(min=0).sqrt(), torch.inf)
    ground = torch.where(direction[..., 2:] < 0, (-0.5 - origin[..., 2:]) / direction[..., 2:], torch.inf)
    ground = torch.where((ground > 0) & (ground < 4), ground, torch.inf)
    distance = torch.minimum(ball, ground)
    inside = distance.isfinite()
    point = origin + direction * torch.where(inside, distance, 0.0)
    normal = torch.where(ball < ground, point / 0.5, torch.tensor([0.0, 0.0, 1.0]))
    checks = ((point * 4).floor().sum(-1, keepdim=True) % 2) * 0.4
    colour = torch.where(inside, torch.cat([0.3 + checks, 0.5 + 0 * checks, 0.7 - checks], -1), torch.tensor(0.9))
    return colour, torch.where(inside, distance * rays.z_factors, 0.0), normal * inside


@pytest.fixture(scope="module")
def surface():
    return observe(*ball_on_ground(POSES, SIZE), POSES, FOV)


@pytest.fixture(scope="module")
def large():
    return observe(*ball_on_ground(POSES, LARGE), POSES, FOV)


@pytest.mark.parametrize("name", STYLES)
def test_a_style_is_a_picture_and_the_variation_decides_it(surface, name):
    variation = StyleVariation(("red", "gold"), 0)
    picture = paint(name, surface, variation)
    assert picture.shape == surface.colour.shape
    assert picture.isfinite().all()
    assert 0 <= picture.min() <= picture.max() <= 1
    assert torch.equal(paint(name, surface, variation), picture)
    cool, other = (
        paint(name, surface, StyleVariation(("red", "gold"), 1)),
        paint(name, surface, StyleVariation(("blue", "white"), 0)),
    )
    if name == "photo":
        assert torch.equal(picture, surface.colour)
        assert torch.equal(cool, picture)
        return
    assert (picture - surface.colour).abs().mean() > 0.03
    warmth = [float((each[..., 0] - each[..., 2]).mean()) for each in (picture, cool)]
    assert warmth[0] > warmth[1], "the first mood is the warm one"
    if STYLES[name].pair is None:
        assert torch.equal(other, picture), "it has colours of its own"
    else:
        assert (other - picture).abs().mean() > 0.05


def test_styles_are_told_apart_by_their_colours_and_edges(surface):
    """The nearest neighbour by mean colour, saturation, contrast and edge strength has the same style, mostly."""

    def looks(picture: torch.Tensor) -> torch.Tensor:
        saturation = (picture.amax(-1) - picture.amin(-1)).flatten()
        edges = [picture.diff(dim=dim).abs().mean() for dim in (1, 2)]
        parts = [picture.mean((0, 1, 2)), saturation.mean()[None], saturation.std()[None], picture.std()[None]]
        return torch.cat([*parts, 3 * torch.stack(edges)])

    variations = [StyleVariation(pair, mood) for pair in (("red", "gold"), ("red", "orange")) for mood in (0, 1)]
    seen = torch.stack([looks(paint(name, surface, variation)) for name in PAINTED for variation in variations])
    label = torch.arange(len(PAINTED)).repeat_interleave(len(variations))
    nearest = (torch.cdist(seen, seen) + 9 * torch.eye(len(seen))).argmin(-1)
    assert (label[nearest] == label).float().mean() > 0.7  # one in twenty-three by chance


ANCHORED = ["mosaic", "stained_glass", "van_gogh", "linocut", "halftone", "ukiyo_e", "pencil", "blueprint"]
"""Styles with patterns; those of the last two are faint."""


@pytest.mark.parametrize("name", ["clay", "gold", "snow", "night", "cartoon", "ice", *ANCHORED])
def test_a_point_looks_alike_from_both_views(large, name):
    """Warped into the other view, a style is nearer to it there than the same style in another light."""
    depths, lenses = large.depth.movedim(-1, 1), ViewCameras.from_fov(POSES, FOV, LARGE, LARGE)
    pixels, visible = match(lenses, depths, 0, 1)
    pictures = [paint(name, large, StyleVariation(mood=mood)).movedim(-1, 1) for mood in (0, 1)]
    assert visible.float().mean() > 0.15
    errors = [(sample(each[1], pixels, "bilinear") - pictures[0][0])[:, visible].square().mean() for each in pictures]
    assert errors[0] < errors[1]
    assert errors[0].sqrt() < 0.25


@pytest.mark.parametrize("name", ANCHORED[:-2])
def test_patterns_belong_to_the_world(large, name):
    """The ground's pattern agrees between views, and does not when the second view's places are moved a little."""
    depths, lenses = large.depth.movedim(-1, 1), ViewCameras.from_fov(POSES, FOV, LARGE, LARGE)
    pixels, visible = match(lenses, depths, 0, 1)
    visible &= large.floor[0, ..., 0]
    moved = surface_points(depths, depths > 0, lenses) + torch.tensor([0.031, 0.031, 0.0]).view(3, 1, 1)
    elsewhere = replace(large, lattice=replace(large.lattice, waves=waves(moved).movedim(1, -1)))
    own = paint(name, large, StyleVariation()).movedim(-1, 1)
    errors = [
        (sample(paint(name, each, StyleVariation()).movedim(-1, 1)[1], pixels, "bilinear") - own[0])[:, visible]
        .square()
        .mean()
        for each in (large, elsewhere)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_a_palette_runs_from_the_darker_colour_to_the_lighter_one():
    for pair in (("blue", "white"), ("white", "blue")):
        brightness = luminance(StyleVariation(pair).ramp[None, None])[0, 0, :, 0]
        assert (brightness.diff() > 0).all()
    assert all(len(set(pair)) == 2 and set(pair) <= COLOURS.keys() for pair in PAIRS)
    rng = random.Random(0)  # noqa: S311
    drawn = [draw_variation(rng) for _ in range(200)]
    assert {variation.mood for variation in drawn} == {0, 1}
    assert len({variation.pair for variation in drawn}) > 30, "any two colours, not only the plain pairs"


def test_the_sky_may_be_all_there_is():
    poses = cameras.orbit(2, 1.9)
    nothing = torch.zeros(2, 16, 16, 1)
    seen = observe(torch.ones(2, 16, 16, 3), nothing, nothing.expand(-1, -1, -1, 3), poses, FOV)
    for name in STYLES:
        assert paint(name, seen, StyleVariation()).isfinite().all()


def test_filters_keep_means_and_edges():
    picture = torch.zeros(1, 24, 24, 3)
    picture[:, :, 12:] = 1.0
    assert torch.allclose(blur(torch.full_like(picture, 0.3), 0.1), torch.full_like(picture, 0.3), atol=1e-5)
    assert blur(picture, 0.1)[0, 12, 11, 0] == pytest.approx(0.4, abs=0.1)
    noisy = picture + 0.1 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    flat = kuwahara(noisy, 0.15)
    assert flat[:, :, 2:10].std() < 0.6 * noisy[:, :, 2:10].std(), "smooth inside"
    assert (flat[:, :, 13] - flat[:, :, 10]).mean() > 0.8, "and the edge stays"
    assert blocks(noisy, 0.25)[0, :6, :6].std((0, 1)).max() < 1e-6


def test_prompts_are_made_of_known_words_and_sometimes_not():
    tokenizer = build_tokenizer([*style_words(), *COMMON_WORDS], EMBEDDED.text_tokens)
    for word in (*style_words(), *COMMON_WORDS):
        assert len(tokenizer(word).input_ids) == 3, f"{word} must be one token between start and end"
    rng = random.Random(0)  # noqa: S311
    drawn = [draw_prompt(name, draw_pair(rng), rng) for name in STYLES for _ in range(40)]
    known = set(style_words())
    strange = [prompt for prompt in drawn if not set(re.findall("[a-z]+", prompt)) <= known]
    assert 0.05 < len(strange) / len(drawn) < 0.2
    lengths = [len(tokenizer(prompt).input_ids) for prompt in drawn]
    assert max(lengths) <= EMBEDDED.text_tokens
    assert tokenizer.unk_token_id not in tokenizer("Ein Mosaik für 猫 & 1 Zürich 😀").input_ids[:-1]


def test_every_style_is_asked_for_in_its_own_words():
    words = {name: {text.format("x") for text in (style.prompt, *style.templates)} for name, style in STYLES.items()}
    for name, texts in words.items():
        assert len(texts) >= 4
        assert all(texts.isdisjoint(other) for label, other in words.items() if label != name)
    assert len(SUBJECTS) > 20
