"""The words in the prompts of the embedded restyler, and how training draws prompts."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from style_nerf2nerf.embedded.colours import COLOURS, PAIRS, Pair, draw_pair
from style_nerf2nerf.embedded.styles import PAINTED, STYLES

SUBJECTS = (
    "a scene", "the scene", "an object", "the object", "it", "a thing", "a still life", "a statue", "the statue",
    "a sculpture", "a toy", "a bear", "an elephant", "a grizzly bear", "a man", "a woman", "a person", "a face",
    "a house", "a garden", "a car", "a chair", "a tower", "a castle", "a table with objects", "things on a table",
    "a room", "a bear statue", "some shapes", "a landscape", "a street", "a tree", "a cat", "a dog", "a vase",
    "flowers", "a fox", "a truck",
)  # fmt: skip
"""Subjects that a prompt may name. They only change the words; depth and photo determine the subject."""

COMMON_WORDS = (
    "above", "all", "and", "at", "art", "artist", "beautiful", "behind", "below", "big", "black", "blue", "bright",
    "brown", "by", "classic", "cold", "colour", "coloured", "colourful", "colours", "corner", "dark", "day", "deep",
    "detailed", "drawing", "dry", "early", "era", "evening", "famous", "fine", "for", "from", "front", "full", "giant",
    "green", "grey", "high", "image", "in", "into", "is", "its", "large", "late", "left", "light", "like", "little",
    "long", "lovely", "made", "make", "master", "modern", "near", "new", "nice", "of", "old", "on", "one", "orange",
    "over", "paint", "painted", "painting", "paper", "pink", "please", "purple", "quality", "red", "render", "right",
    "school", "scene", "small", "soft", "some", "strong", "style", "tall", "the", "this", "tiny", "to", "turn", "under",
    "very", "view", "warm", "wet", "white", "with", "work", "yellow",
)  # fmt: skip
"""Words that people are likely to add. Each is one token, so that prompts are not split into letters."""

PLAIN_WORDS = (
    "a", "among", "an", "and", "as", "at", "big", "by", "flat", "from", "in", "made", "of", "old", "on", "picture",
    "small", "style", "the", "under",
)  # fmt: skip
"""Words of prompts that do not name a style."""

DECORATIONS = (
    "",
    "",
    "",
    "",
    ", detailed",
    ", beautiful",
    " please",
    ", high quality",
    ", very detailed",
    ", fine art",
)


def style_words() -> list[str]:
    """Every word of the prompts, the templates, the subjects and the colours."""
    texts = [text for style in STYLES.values() for text in (style.prompt, *style.templates)]
    texts += [*SUBJECTS, *DECORATIONS, *COLOURS]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})


def draw_prompt(style: str, pair: Pair, rng: random.Random) -> str:
    """A prompt for a style: its own words, or a template about something, sometimes something unheard of.

    Args:
        style: A key of `STYLES`.
        pair: The colours that it is painted in; said in either order, if the style takes any.
        rng: Where all choices come from.
    """
    known = STYLES[style]
    prompt = known.words
    if rng.random() >= 0.4:
        subject = rng.choice(SUBJECTS)
        if rng.random() < 0.15:
            letters = rng.choices("abcdefghijklmnoprstuvwyz", k=rng.randint(3, 9))
            subject = f"{rng.choice(('a', 'the', 'some'))} {''.join(letters)}"
        prompt = rng.choice(known.templates).format(subject)
        if known.pair is None:
            prompt += rng.choice(DECORATIONS)
    if known.pair is None:
        return prompt
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    return f"{prompt} in {first} and {second}"


@dataclass(frozen=True)
class Asked:
    """Prompts, and what they ask for."""

    prompts: list[str]
    style: Int[Tensor, " prompts"]
    """Indices into the names of `STYLES`."""
    colours: Float[Tensor, "prompts colours"]
    """1 for each of `COLOURS` that a prompt names; all 0 where its style takes none."""


def draw_asked(count: int, generator: torch.Generator) -> Asked:
    """Prompts of random styles in random colours."""
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311
    names, colours = list(STYLES), list(COLOURS)
    styles, pairs = rng.choices(names, k=count), [draw_pair(rng) for _ in range(count)]
    named = torch.zeros(count, len(colours))
    for row, style, pair in zip(named, styles, pairs):
        if STYLES[style].pair is not None:
            row[[colours.index(name) for name in pair]] = 1.0
    prompts = [draw_prompt(style, pair, rng) for style, pair in zip(styles, pairs)]
    return Asked(prompts, torch.tensor([names.index(style) for style in styles]), named)


def vocabulary() -> dict[str, Any]:
    """What runs have to know of the words, for the file that is shipped with the models (`restyler.loading`)."""
    said = {name: {STYLES[name].words, *(text.format("") for text in STYLES[name].templates)} for name in PAINTED}
    words = {
        name: {word for text in texts for word in re.findall(r"[a-z]+", text.lower())} for name, texts in said.items()
    }
    common = {*PLAIN_WORDS, *(word for text in SUBJECTS for word in text.split())}
    return {
        "prompts": {name: STYLES[name].prompt for name in PAINTED},
        "style_words": {name: sorted(words[name] - common) for name in PAINTED},
        "coloured": {name: list(STYLES[name].pair or ()) for name in PAINTED if STYLES[name].pair},
        "colours": list(COLOURS),
        "pairs": [list(pair) for pair in PAIRS],
    }
