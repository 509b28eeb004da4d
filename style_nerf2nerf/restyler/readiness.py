"""Check, before long work and without loading a model, whether a restyling can work on this machine.

The files of all models are there and fit, the prompts are read to their end, and the memory is likely to suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json
from eschernet_prior.base.schedulers import RESUMABLE_SCHEDULERS
from style_nerf2nerf.restyler.compute.kernels import check_kernel
from style_nerf2nerf.restyler.compute.memory import total_memory
from style_nerf2nerf.restyler.compute.needs import needs, report
from style_nerf2nerf.restyler.compute.precision import Precision, choose_dtype
from style_nerf2nerf.restyler.models.few_steps import check_lora
from style_nerf2nerf.restyler.models.files import check_models
from style_nerf2nerf.restyler.models.folders import locate_models
from style_nerf2nerf.restyler.models.ip_adapter import check_ip_adapter
from style_nerf2nerf.restyler.prompts import announce_cuts, load_tokenizer
from style_nerf2nerf.restyler.settings import Settings
from style_nerf2nerf.restyler.sizes import check_side, native_side, size_unit, working_size


def ensure_ready(
    source: str,
    settings: Settings,
    prompts: Sequence[str],
    *,
    precision: Precision,
    device: torch.device | str,
    views: int,
    view_size: tuple[int, int],
    with_reference: bool = False,
    max_views_per_batch: int | None = None,
    attention_kernel: str = "auto",
) -> None:
    """Download missing models, check all files, and print the memory needed.

    Args:
        source: Where the models come from.
        settings: Of the first round.
        prompts: Of all styles.
        precision: As asked for.
        device: Where the restyling will run.
        views: How many are restyled together.
        view_size: Their height and width.
        with_reference: Whether they attend to a reference picture.
        max_views_per_batch: Views that are worked on at a time, if that is given.
        attention_kernel: torch's kernel for attention.

    Raises:
        UserError: If something is missing, does not fit, or cannot work.
    """
    device = torch.device(device)
    check_kernel(attention_kernel, device)
    folders = locate_models(source)
    _check_scheduler(folders.base)
    models = check_models(folders)
    unet, vae = models.networks["unet"], models.networks["vae"]
    if settings.size is not None:
        check_side(settings.size, unet, vae)
    if settings.ip_adapter is not None:
        check_ip_adapter(settings.ip_adapter, unet)
    if settings.speed == "fast":
        check_lora(unet, settings.fast_lora)
    announce_cuts(load_tokenizer(folders.base), (*prompts, settings.negative_prompt))
    size = working_size(*view_size, settings.size or native_side(unet, vae), size_unit(unet, vae))
    needed = needs(
        models,
        choose_dtype(precision, device, models.parameters, models.files_dtype),
        size,
        views + with_reference,
        total_memory(device),
        guided=settings.guidance > 1,
        on_cpu=device.type == "cpu",
        max_views=max_views_per_batch,
    )
    sentence, fits = report(needed, device)
    if source != "embedded":  # whose networks fit anywhere
        CONSOLE.print(needed.table())
    CONSOLE.print(sentence, style=None if fits else "bold yellow", markup=False, soft_wrap=True)


def _check_scheduler(base: Path) -> None:
    """Refuse models whose scheduler cannot be resumed."""
    config = read_json(base / "scheduler" / "scheduler_config.json")
    name = config.get("_class_name") if isinstance(config, dict) else None
    known = (*RESUMABLE_SCHEDULERS, "LCMScheduler")  # the noise of the last is drawn by step and view
    if name not in known:
        raise UserError(
            f"{base / 'scheduler'} names the scheduler {name}, which cannot be resumed: save the models with "
            f"{' or '.join(known)}."
        )
