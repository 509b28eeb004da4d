"""The styles of the embedded restyler: painters, and the words that name them.

A *style* is a rule that repaints a scene from its colour, depth and normals. What it paints follows from photo and
depth, from the words, and from few choices (a variation of `colours`): there are no patterns drawn by chance, which
a small model could only blur.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from style_nerf2nerf.embedded import materials, paintings, prints
from style_nerf2nerf.embedded.colours import Pair, StyleVariation
from style_nerf2nerf.embedded.patterns import Picture
from style_nerf2nerf.embedded.surface import Surface


@dataclass(frozen=True)
class Style:
    """A style with the words that name it."""

    paint: Callable[[Surface, StyleVariation], Picture]
    """The rule."""
    words: str
    """The short prompt, without colours."""
    templates: tuple[str, ...]
    """Prompts for it; `{}` stands for the subject."""
    pair: Pair | None = None
    """The default colours, if prompts can name colours for the style; None: its colours are fixed."""

    @property
    def prompt(self) -> str:
        """The style's prompt in the tiny method."""
        return self.words if self.pair is None else f"{self.words} in {' and '.join(self.pair)}"


STYLES: dict[str, Style] = {
    "mosaic": Style(
        prints.mosaic,
        "a mosaic of small stone tiles",
        (
            "a mosaic of {}",
            "{} made of tesserae",
            "{} as a mosaic of small stone tiles",
            "a roman mosaic of {}",
            "{} in tiles",
        ),
        ("blue", "gold"),
    ),
    "stained_glass": Style(
        prints.stained_glass,
        "a stained glass window",
        (
            "a stained glass window of {}",
            "{} in stained glass",
            "{} made of coloured glass panes",
            "stained glass {}",
        ),
        ("red", "gold"),
    ),
    "pencil": Style(
        paintings.pencil,
        "a pencil sketch",
        (
            "a pencil sketch of {}",
            "a pencil drawing of {}",
            "{} drawn in graphite",
            "a black and white sketch of {}",
        ),
    ),
    "van_gogh": Style(
        paintings.van_gogh,
        "a painting by van gogh",
        (
            "a painting of {} by van gogh",
            "{} in the style of van gogh",
            "{} painted by vincent van gogh",
            "a painting of {} with swirling brush strokes",
        ),
        ("blue", "gold"),
    ),
    "snow": Style(
        materials.snow,
        "a scene covered in snow",
        (
            "{} covered in snow",
            "{} in the snow",
            "{} in winter",
            "a snowy photo of {}",
            "{} under snow",
        ),
    ),
    "night": Style(
        materials.night,
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
        materials.clay,
        "a clay sculpture",
        (
            "a clay sculpture of {}",
            "{} made of clay",
            "{} modelled in clay",
            "a clay model of {}",
            "{} in terracotta",
        ),
        ("orange", "cream"),
    ),
    "gold": Style(
        materials.gold,
        "a statue made of gold",
        (
            "{} made of gold",
            "a golden statue of {}",
            "{} in solid gold",
            "a gold sculpture of {}",
            "{} of polished golden metal",
        ),
    ),
    "ice": Style(
        materials.ice,
        "a sculpture made of ice",
        (
            "{} made of ice",
            "an ice sculpture of {}",
            "{} carved in ice",
            "{} of frozen crystal",
            "a frozen {}",
        ),
    ),
    "neon": Style(
        materials.neon,
        "glowing neon lights",
        (
            "{} in neon lights",
            "a neon sign of {}",
            "{} in glowing neon",
            "{} made of glowing neon tubes",
        ),
        ("turquoise", "pink"),
    ),
    "cartoon": Style(
        prints.cartoon,
        "a cartoon",
        (
            "a cartoon of {}",
            "{} as a cartoon",
            "an animated cartoon of {}",
            "{} in anime style",
        ),
    ),
    "watercolour": Style(
        paintings.watercolour,
        "a watercolour painting",
        (
            "a watercolour of {}",
            "a watercolour painting of {}",
            "{} in watercolour",
            "a watercolor of {}",
            "{} painted in soft washes",
        ),
    ),
    "oil": Style(
        paintings.oil,
        "an oil painting",
        (
            "an oil painting of {}",
            "{} in oil on canvas",
            "{} painted in thick oil paint",
            "an old master painting of {}",
        ),
    ),
    "ukiyo_e": Style(
        prints.ukiyo_e,
        "a japanese woodblock print",
        (
            "a ukiyo-e print of {}",
            "a japanese woodblock print of {}",
            "{} in the style of hokusai",
            "{} as a ukiyo-e woodblock print",
        ),
        ("blue", "cream"),
    ),
    "charcoal": Style(
        paintings.charcoal,
        "a charcoal drawing",
        (
            "a charcoal drawing of {}",
            "{} drawn in charcoal",
            "{} in charcoal and chalk",
            "a charcoal sketch of {}",
        ),
    ),
    "autumn": Style(
        materials.autumn,
        "a scene in autumn",
        (
            "{} in autumn",
            "{} among autumn leaves",
            "{} in golden fall leaves",
            "an autumn photo of {}",
        ),
    ),
    "cyberpunk": Style(
        materials.cyberpunk,
        "a cyberpunk city at night",
        (
            "a cyberpunk {}",
            "{} in a cyberpunk city",
            "{} in a neon city at night",
            "{} in cyberpunk style",
        ),
    ),
    "low_poly": Style(
        materials.low_poly,
        "a low-poly model",
        (
            "a low-poly model of {}",
            "{} in low-poly style",
            "low poly {}",
            "{} made of flat polygons",
        ),
    ),
    "pixel": Style(
        prints.pixel,
        "pixel art",
        (
            "pixel art of {}",
            "{} in pixel art",
            "an 8-bit pixel game picture of {}",
            "{} made of voxels",
            "{} in big pixels",
        ),
    ),
    "halftone": Style(
        prints.halftone,
        "a comic book print",
        (
            "a comic book print of {}",
            "{} in a comic book",
            "a pop art print of {}",
            "{} in halftone dots",
            "a comic of {}",
        ),
        ("red", "cream"),
    ),
    "linocut": Style(
        prints.linocut,
        "a linocut print",
        (
            "a linocut of {}",
            "a linocut print of {}",
            "{} as a woodcut",
            "{} carved in linoleum",
            "an engraving of {}",
        ),
        ("black", "cream"),
    ),
    "paper_cut": Style(
        prints.paper_cut,
        "a layered paper cut",
        (
            "a paper cut of {}",
            "{} cut from layered paper",
            "a layered paper collage of {}",
            "{} made of paper",
        ),
        ("purple", "pink"),
    ),
    "blueprint": Style(
        prints.blueprint,
        "a blueprint",
        (
            "a blueprint of {}",
            "{} as a blueprint",
            "a technical drawing of {}",
            "an architect's blueprint of {}",
        ),
    ),
    "photo": Style(
        materials.photo,
        "a photo",
        (
            "a photo of {}",
            "a photograph of {}",
            "a picture of {}",
            "{}",
            "a realistic photo of {}",
        ),
    ),
}
"""Every style by name; `photo` is the picture itself."""

PAINTED = tuple(name for name in STYLES if name != "photo")


def paint(style: str, surface: Surface, variation: StyleVariation) -> Picture:
    """All views of a scene in one style and variation, in [0, 1]."""
    painted = STYLES[style].paint(surface, variation)
    return painted.clamp(0, 1) if style == "photo" else variation.light(painted)
