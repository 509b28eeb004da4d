"""Long prompts are counted in tokens, by the tokenizer that cuts them; the libraries' own remarks stay away."""

import pytest
import torch

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.embedded.models import STAND_IN, build_pipeline
from style_nerf2nerf.restyler.prompts import cut_off, encode_prompts, load_tokenizer

LONG = " ".join(["a painting of gold and snow at night"] * 20)


@pytest.fixture(scope="module")
def pipeline():
    return build_pipeline(STAND_IN)


@pytest.fixture(scope="module")
def tokenizer(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    return load_tokenizer(folder)


def test_a_prompt_that_is_read_whole_needs_no_word(tokenizer):
    assert cut_off(tokenizer, "gold") is None
    assert cut_off(tokenizer, "") is None


def test_what_is_cut_off_is_counted_in_tokens_and_quoted(tokenizer):
    tokens = len(tokenizer(LONG, add_special_tokens=False)["input_ids"])
    readable = tokenizer.model_max_length - 2
    assert tokens > readable
    sentence = cut_off(tokenizer, LONG)
    assert f"has {tokens} tokens" in sentence
    assert f"first {readable}" in sentence
    kept = tokenizer(LONG, truncation=True, add_special_tokens=False, max_length=readable)["input_ids"]
    rest = LONG.removeprefix(tokenizer.decode(kept).strip()).strip()
    assert f"“{rest[:40]}" in sentence
    assert len(sentence) < 300


def test_encoding_a_long_prompt_says_nothing_and_reads_its_beginning(pipeline, capfd):
    encoded = encode_prompts(pipeline, LONG, LONG, True, torch.device("cpu"))
    printed = "".join(capfd.readouterr())
    assert "indexing errors" not in printed
    assert "truncated" not in printed
    same = encode_prompts(pipeline, LONG + " clay", LONG, True, torch.device("cpu"))
    assert torch.equal(encoded["prompt_embeds"], same["prompt_embeds"])


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="no CLIP tokenizer"):
        load_tokenizer(tmp_path)
