"""The embedded scenes: by name, or by the roll of a seed. What they are made of: `creatures`, `plants`, `things`, `showcase`; how they become pictures: `raytracer`.

Every scene's parts lie centred on the origin in a box whose largest side is 1, z up, facing +x; the ground, where there is
one, touches them from below. Two modes: an object in the void (alpha 0 around it), or with background (ground and sky, alpha 1
everywhere).
"""

from collections.abc import Callable, Sequence

from eschernet_prior import showcase
from eschernet_prior.creatures import CREATURES
from eschernet_prior.dice import GROUNDS, SKIES, Dice
from eschernet_prior.errors import UserError
from eschernet_prior.plants import PLANTS
from eschernet_prior.raytracer import Rendering, Scene, render
from eschernet_prior.sdf import Part, bounding_box, euler
from eschernet_prior.textures import Texture
from eschernet_prior.things import THINGS

__all__ = ["EMBEDDED", "Rendering", "Scene", "embedded_scene", "random_scene", "render"]

EMBEDDED: dict[str, Callable[[], list[Part]]] = {
    "cottage": showcase.cottage,
    "bear": showcase.bear,
    "tea": showcase.tea,
}
"""Scenes made by hand, by name."""
ARCHETYPES = (*CREATURES, *PLANTS, *THINGS)
"""What `random_scene` draws from."""
LAWN = Texture((0.90, 0.94, 0.98), (0.79, 0.87, 0.95), "patches", 0.3, gloss=0.0)


def fit_to_unit(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts, moved and scaled so that their common box is centred on the origin and its largest side is 1."""
    low, high = bounding_box(tuple(parts))
    scale = 1.0 / max(b - a for a, b in zip(low, high))
    x, y, z = (-scale * (a + b) / 2.0 for a, b in zip(low, high))
    return tuple(part.moved(position=(x, y, z), scale=scale) for part in parts)


def embedded_scene(name: str = "cottage", background: bool = False) -> Scene:
    """A scene made by hand.

    Args:
        name: one of `EMBEDDED`.
        background: whether it stands on a ground under a sky, or in the void.

    Returns:
        The scene.

    Raises:
        UserError: there is no such scene.
    """
    if name not in EMBEDDED:
        raise UserError(f"There is no embedded scene {name!r}: choose one of {', '.join(EMBEDDED)}.")
    parts = fit_to_unit(EMBEDDED[name]())
    low, _ = bounding_box(parts)
    return Scene(parts, LAWN if background else None, low[2], sky=SKIES[0])


def random_scene(seed: int, background: bool = False) -> Scene:
    """A toy by the roll of a seed, under its own light: the same seed always gives the same one.

    Args:
        seed: any whole number from 0.
        background: whether it stands on a ground under a sky, or in the void.

    Returns:
        The scene.
    """
    dice = Dice(seed)
    toy = dice.pick(ARCHETYPES)(dice)
    turn = euler(z=dice.between(0.0, 360.0))
    parts = fit_to_unit([part.moved(rotation=turn) for part in toy])
    low, _ = bounding_box(parts)
    light = (dice.between(-0.7, 0.7), dice.between(-0.7, 0.7), dice.between(0.7, 1.1))
    sky = dice.pick(SKIES)
    ground = dice.pick(GROUNDS)
    return Scene(parts, ground if background else None, low[2], light, sky=sky)
