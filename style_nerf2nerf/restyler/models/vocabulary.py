"""The words that a folder's models were trained on: which style a prompt asks for, and in which colours.

SDXL reads any words and has no vocabulary; the small embedded models know a few styles, and some of these take two
colours by name.
"""

from __future__ import annotations

import difflib
import random
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from eschernet_prior.base.files import read_json

TRAINING_FILE = "restyler.json"
"""In a folder of models: what diffusers has no place for, `{"noise_offset": deviation, "prompts": {style: prompt}, …}`,
with the fields of `Vocabulary`."""
COLOUR_WEIGHT = 0.5
"""Of a colour's name among the words that tell a style: “gold” may mean the metal or the colour."""


@dataclass(frozen=True)
class Vocabulary:
    """The words that models were trained on; empty where they read any."""

    prompts: dict[str, str] = field(default_factory=dict)
    """The prompt of each style, by its name."""
    style_words: dict[str, list[str]] = field(default_factory=dict)
    """Words that ask for a style, by its name."""
    coloured: dict[str, list[str]] = field(default_factory=dict)
    """Styles that take two colours by name, with the colours of their own prompt."""
    colours: list[str] = field(default_factory=list)
    """Names of colours."""
    pairs: list[list[str]] = field(default_factory=list)
    """Pairs of colours that go well together."""

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        """A folder's words, from its `TRAINING_FILE`; an empty vocabulary without one."""
        content = read_json(folder / TRAINING_FILE)
        known = content if isinstance(content, dict) else {}
        return cls(**{field.name: known[field.name] for field in fields(cls) if field.name in known})

    def style(self, prompt: str) -> str | None:
        """The style that a prompt asks for: the one with the most of its words in it; None if no word names one."""
        words = _words(prompt)
        scores = {name: self._score(words & set(known)) for name, known in self.style_words.items()}
        best = max(scores, key=scores.__getitem__, default=None)
        return best if best is not None and scores[best] > 0 else None

    def _score(self, words: set[str]) -> float:
        """Words count by how few styles have them."""
        return sum(
            (COLOUR_WEIGHT if word in self.colours else 1.0) / sum(word in known for known in self.style_words.values())
            for word in words
        )

    def nearest(self, prompt: str) -> str:
        """The style with the word that is spelled most like one of the prompt's."""
        likeness = {
            name: max(
                difflib.SequenceMatcher(None, known, word).ratio() for known in self.style_words[name] for word in words
            )
            for words in (_words(prompt) or {""},)
            for name in self.prompts
        }
        return max(likeness, key=likeness.__getitem__)

    def advice(self, prompt: str) -> str | None:
        """What to say of a prompt that names no style these models know; None if it names one."""
        if not self.prompts or self.style(prompt) is not None:
            return None
        nearest, known = self.nearest(prompt), ", ".join(name.replace("_", " ") for name in self.prompts)
        return (
            f"The small embedded models know no style in “{prompt}” and will paint something in between. They know "
            f"{known}; the nearest is {nearest.replace('_', ' ')}: “{self.prompts[nearest]}”."
        )

    def complete(self, prompt: str, seed: int) -> str:
        """A prompt with the two colours that its style takes: those it names, the others drawn by the seed.

        Few-step models paint the mean of all palettes, grey, where no word says which. Prompts of styles with colours
        of their own, and of no known style, stay as they are.
        """
        style = self.style(prompt)
        if style is None or style not in self.coloured:
            return prompt
        words = re.findall(r"[a-z]+", prompt.lower())
        named = [word for word in dict.fromkeys(words) if word in self.colours]
        if len(named) >= 2:
            return prompt
        fitting = [pair for pair in self.pairs if set(named) <= set(pair)] or self.pairs
        first, second = random.Random(seed).choice(fitting)  # noqa: S311
        if not named:
            return f"{prompt} in {first} and {second}"
        other = second if first == named[0] else first
        return f"{prompt} and {other}" if words[-1] == named[0] else f"{prompt} in {named[0]} and {other}"


def _words(prompt: str) -> set[str]:
    return set(re.findall(r"[a-z]+", prompt.lower()))
