"""Procedural scenes: embedded ones by name, random ones by a seed.

The parts come from `embedded` (hand-made) and from `creatures`, `plants` and `objects` (random); `raytracer` renders
them. All parts together are centred on the origin in a box with longest side 1, z up, facing +x, and touch the ground,
if there is one. Two modes: an object alone (alpha 0 around it), or with background (ground and sky, alpha 1
everywhere).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eschernet_prior.base.errors import UserError
from eschernet_prior.procedural import embedded
from eschernet_prior.procedural.creatures import CREATURES
from eschernet_prior.procedural.objects import THINGS
from eschernet_prior.procedural.plants import PLANTS
from eschernet_prior.procedural.raytracer import Rendering, Scene, render
from eschernet_prior.procedural.sampler import GROUNDS, LAWN, SAND, SKIES, SNOW, SeededSampler
from eschernet_prior.procedural.sdf import Part, bounding_box, euler
from eschernet_prior.procedural.textures import Colour, Texture

__all__ = ["EMBEDDED", "Rendering", "Scene", "embedded_scene", "find_scene", "random_scene", "render"]

ARCHETYPES = (*CREATURES, *PLANTS, *THINGS)
"""Kinds of objects that `random_scene` draws from."""


@dataclass(frozen=True)
class Setting:
    """A hand-made scene, and its surroundings in the mode with background."""

    build: Callable[[], list[Part]]
    ground: Texture
    sky: tuple[Colour, Colour]


EMBEDDED = {
    "cottage": Setting(embedded.cottage, SNOW, SKIES[0]),
    "bear": Setting(embedded.bear, SAND, SKIES[1]),
    "tea": Setting(embedded.tea, LAWN, SKIES[0]),
}
"""Hand-made scenes by name."""


def fit_to_unit(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Translate and scale parts so that their common box is centred on the origin and its longest side is 1."""
    low, high = bounding_box(tuple(parts))
    scale = 1.0 / max(b - a for a, b in zip(low, high))
    x, y, z = (-scale * (a + b) / 2.0 for a, b in zip(low, high))
    return tuple(part.moved(position=(x, y, z), scale=scale) for part in parts)


def embedded_scene(name: str = "cottage", background: bool = False) -> Scene:
    """A hand-made scene.

    Args:
        name: One of `EMBEDDED`.
        background: Whether to show a ground and a sky.

    Returns:
        The scene.

    Raises:
        UserError: If there is no such scene.
    """
    if name not in EMBEDDED:
        raise UserError(f"There is no embedded scene “{name}”: choose {', '.join(EMBEDDED)}, or a number as a seed.")
    setting = EMBEDDED[name]
    parts = fit_to_unit(setting.build())
    low, _ = bounding_box(parts)
    return Scene(parts, setting.ground if background else None, low[2], sky=setting.sky)


def random_scene(seed: int, background: bool = False) -> Scene:
    """A random object under a random light, determined by the seed.

    Args:
        seed: Any integer of at least 0.
        background: Whether to show a ground and a sky.

    Returns:
        The scene.
    """
    sampler = SeededSampler(seed)
    toy = sampler.pick(ARCHETYPES)(sampler)
    turn = euler(z=sampler.between(0.0, 360.0))
    parts = fit_to_unit([part.moved(rotation=turn) for part in toy])
    low, _ = bounding_box(parts)
    light = (sampler.between(-0.7, 0.7), sampler.between(-0.7, 0.7), sampler.between(0.7, 1.1))
    sky = sampler.pick(SKIES)
    ground = sampler.pick(GROUNDS)
    return Scene(parts, ground if background else None, low[2], light, sky=sky)


def find_scene(name: str, background: bool = False) -> Scene:
    """The embedded scene of a name, or the random scene of an integer seed.

    Raises:
        UserError: If it is neither.
    """
    if name.isascii() and name.isdigit():
        return random_scene(int(name), background)
    return embedded_scene(name, background)
