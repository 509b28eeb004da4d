"""The words of the embedded restyler: what its prompts are made of and how training draws them."""

from __future__ import annotations

import random
import re

from style_nerf2nerf.embedded.styles import STYLES

SUBJECTS = (
    "a scene", "the scene", "an object", "the object", "it", "a thing", "a still life", "a statue", "the statue",
    "a sculpture", "a toy", "a bear", "an elephant", "a grizzly bear", "a man", "a woman", "a person", "a face",
    "a house", "a garden", "a car", "a chair", "a tower", "a castle", "a table with objects", "things on a table",
    "a room", "a bear statue", "some shapes", "a landscape", "a street", "a tree", "a cat", "a dog", "a vase",
    "flowers", "a fox", "a truck",
)  # fmt: skip
"""What a prompt may say is in the picture. It changes nothing but the words: depth and picture say what is there."""

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
"""Words that a person is likely to add; whole tokens, so that a prompt does not fall into letters."""

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
    """Every word of the prompts, the templates and the subjects."""
    texts = [text for style in STYLES.values() for text in (style.prompt, *style.templates)]
    texts += [*SUBJECTS, *DECORATIONS]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})


def draw_prompt(style: str, rng: random.Random) -> str:
    """A prompt for a style: its own short prompt, or a template about something, sometimes something unheard of."""
    known = STYLES[style]
    if rng.random() < 0.25:
        return known.prompt
    subject = rng.choice(SUBJECTS)
    if rng.random() < 0.25:
        letters = rng.choices("abcdefghijklmnoprstuvwyz", k=rng.randint(3, 9))
        subject = f"{rng.choice(('a', 'the', 'some'))} {''.join(letters)}"
    return rng.choice(known.templates).format(subject) + rng.choice(DECORATIONS)
