"""What runs know of the embedded models' words: styles, colours, and what to say of other words."""

import pytest

from style_nerf2nerf.embedded.prompts import vocabulary
from style_nerf2nerf.embedded.styles import PAINTED, STYLES
from style_nerf2nerf.restyler.models.hub import EMBEDDED_FOLDER
from style_nerf2nerf.restyler.models.vocabulary import Vocabulary

WORDS = Vocabulary(**vocabulary())


def test_the_shipped_words_are_those_that_training_uses():
    assert Vocabulary.read(EMBEDDED_FOLDER) == WORDS


def test_models_without_words_read_any(tmp_path):
    empty = Vocabulary.read(tmp_path)
    assert empty.advice("a mosaic") is None
    assert empty.complete("a mosaic", 0) == "a mosaic"


@pytest.mark.parametrize("name", PAINTED)
def test_every_style_is_told_by_its_own_words(name):
    assert WORDS.style(STYLES[name].prompt) == name
    assert WORDS.advice(STYLES[name].prompt) is None
    for template in STYLES[name].templates:
        assert WORDS.style(template.format("a bear")) == name, template


def test_other_words_are_named_with_the_styles_there_are_and_the_nearest():
    advice = WORDS.advice("a bear as a mosiac")
    assert advice is not None
    assert "“a bear as a mosiac”" in advice
    assert all(name.replace("_", " ") in advice for name in PAINTED)
    assert f"the nearest is mosaic: “{STYLES['mosaic'].prompt}”" in advice
    assert WORDS.nearest("etched in waterclour") == "watercolour"
    assert WORDS.advice("猫") is not None


def test_colours_that_words_leave_open_are_drawn_by_the_seed():
    completed = {WORDS.complete("a mosaic of a bear", seed) for seed in range(40)}
    assert WORDS.complete("a mosaic of a bear", 3) == WORDS.complete("a mosaic of a bear", 3)
    assert len(completed) > 8
    assert {prompt.removeprefix("a mosaic of a bear in ") for prompt in completed} <= {
        " and ".join(pair) for pair in WORDS.pairs
    }
    assert WORDS.complete("stained glass in red and gold", 0) == "stained glass in red and gold"
    assert WORDS.complete("a mosaic in blue", 1).startswith("a mosaic in blue and ")
    assert WORDS.complete("a blue mosaic of a bear", 1).startswith("a blue mosaic of a bear in blue and ")
    assert WORDS.complete("a pencil sketch", 1) == "a pencil sketch", "it has colours of its own"
    assert WORDS.complete("a hologram", 1) == "a hologram"
