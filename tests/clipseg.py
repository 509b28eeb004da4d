"""A small CLIPSeg with random weights, in the hub's layout."""

from pathlib import Path

import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPSegTextConfig,
    CLIPSegVisionConfig,
    ViTImageProcessor,
)

from style_nerf2nerf.embedded.models import build_tokenizer

WORDS = ("the", "tents", "trees", "a", "ball")


def save_clipseg(folder: Path) -> Path:
    """Write it into a folder, which is returned."""
    tokenizer = build_tokenizer(WORDS, 16)
    sides = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    text = CLIPSegTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sides,
    )
    vision = CLIPSegVisionConfig(image_size=32, patch_size=8, **sides)
    config = CLIPSegConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1, 2],
        conditional_layer=0,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = CLIPSegForImageSegmentation(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    pictures = ViTImageProcessor(size={"height": 32, "width": 32})
    processor = CLIPSegProcessor(image_processor=pictures, tokenizer=tokenizer)
    pictures.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert processor is not None
    return folder
