"""What the text encoders read of a prompt: its tokens, what is cut off, and the embeddings.

CLIP reads 77 tokens, start and end included. Further tokens of a prompt are cut off: a message reports the number of
tokens and the words that are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLControlNetImg2ImgPipeline
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.restyler.compute.memory import empty_cache

ENCODERS = ("text_encoder", "text_encoder_2")
EXCERPT = 60
"""Characters of an excerpt of what was cut off."""

_announced: set[str] = set()


@contextmanager
def quiet_tokenizers() -> Iterator[None]:
    """Suppress the libraries' warnings about long prompts, one of which announces errors that do not occur."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    kits: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    before = [kit.get_verbosity() for kit in kits]
    for kit in kits:
        kit.set_verbosity_error()
    try:
        yield
    finally:
        for kit, level in zip(kits, before):
            kit.set_verbosity(level)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the first text encoder in a folder of models; both of SDXL's read the same tokens.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    from transformers import CLIPTokenizer

    try:
        with quiet_tokenizers():
            return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'tokenizer'} holds no CLIP tokenizer: download or save the models again."
        ) from error


def cut_off(tokenizer: Any, prompt: str) -> str | None:
    """A sentence about the part of a prompt that is cut off; None if nothing is.

    Args:
        tokenizer: The text encoder's own.
        prompt: What a person wrote.
    """
    with quiet_tokenizers():
        encoded = tokenizer(prompt, truncation=False, add_special_tokens=False, return_offsets_mapping=True)
    tokens, readable = len(encoded["input_ids"]), tokenizer.model_max_length - 2
    if tokens <= readable:
        return None
    begin = encoded["offset_mapping"][readable][0]
    begin = max(prompt.rfind(" ", 0, begin + 1), 0)  # the whole word, of which the beginning may have been read
    rest = prompt[begin:].strip()
    excerpt = rest if len(rest) <= EXCERPT else f"{rest[:EXCERPT].rstrip()} …"
    return (
        f"The prompt has {tokens} tokens and the text encoders read the first {readable}: “{excerpt}” is not read. Put "
        "what matters first, or say it in fewer words."
    )


def announce_cuts(tokenizer: Any, prompts: Iterable[str]) -> None:
    """Print the part of each prompt that is cut off, once per process."""
    for prompt in prompts:
        sentence = cut_off(tokenizer, prompt)
        if sentence is not None and sentence not in _announced:
            _announced.add(sentence)
            CONSOLE.print(sentence, style="bold yellow", markup=False)


def encode_prompts(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline,
    prompt: str,
    negative_prompt: str,
    guided: bool,
    device: torch.device,
) -> dict[str, Float[Tensor, "1 ..."] | None]:
    """The prompt's embeddings as the pipeline takes them, one row each.

    The text encoders come to the device for it and leave it afterwards: SDXL's need 1.6 GB in half precision.

    Args:
        pipeline: SDXL.
        prompt: Description of the wanted style.
        negative_prompt: Description of what to avoid.
        guided: Whether classifier-free guidance needs the negative ones.
        device: Where to run.
    """
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    encoders = [getattr(pipeline, name) for name in ENCODERS if getattr(pipeline, name) is not None]
    for encoder in encoders:
        encoder.to(device)
    try:
        with quiet_tokenizers():
            encoded = pipeline.encode_prompt(
                prompt,
                device=device,
                do_classifier_free_guidance=guided,
                # None, not "": only then do models that were trained with zeros for "no prompt" get zeros.
                negative_prompt=negative_prompt.strip() or None,
            )
    finally:
        for encoder in encoders:
            encoder.to("cpu")
        empty_cache()
    return dict(zip(names, encoded))
