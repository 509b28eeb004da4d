"""Where the restyling models come from, and the check that they are here before anything long starts."""

from __future__ import annotations

from pathlib import Path

from eschernet_prior.base.errors import UserError
from eschernet_prior.hub import HUB_MODELS, HubModel

EMBEDDED_FOLDER = Path(__file__).parents[1] / "weights" / "restyler"
"""The small models in this package."""


SDXL = {
    "base": HUB_MODELS["sdxl"],
    "controlnet": HUB_MODELS["sdxl-controlnet-depth"],
    "vae": HUB_MODELS["sdxl-vae"],
}
"""What the source `"sdxl"` means."""
IP_ADAPTER = HUB_MODELS["ip-adapter"]
"""What the IP-Adapter `"sdxl"` means: SDXL's adapter for the smaller of the repository's image encoders."""
SMALL_FILES = ("*.json", "*.txt")


def ensure_models(source: str | Path) -> None:
    """Have the models of a source on this machine; those of `"sdxl"` are downloaded where they are not.

    Nothing is loaded, and the network is not touched where everything is in the hub's cache.

    Args:
        source: `"embedded"`, `"sdxl"`, or a folder in diffusers' layout.

    Raises:
        UserError: they are not there and cannot be had.
    """
    if source == "sdxl":
        for model in SDXL.values():
            _ensure_downloaded(model)
        return
    folder = EMBEDDED_FOLDER if source == "embedded" else Path(source)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"There are no restyling models in {folder}: give --pipeline.restyle.source sdxl, embedded, or a folder "
            "that diffusers' save_pretrained wrote."
        )


def ensure_ip_adapter(source: str | Path) -> Path:
    """Have an IP-Adapter on this machine; that of `"sdxl"` is downloaded where it is not.

    Args:
        source: `"sdxl"`, or a folder in the hub's layout (see `IP_ADAPTER`).

    Returns:
        Its folder.

    Raises:
        UserError: it is not there and cannot be had.
    """
    if source == "sdxl":
        return _ensure_downloaded(IP_ADAPTER, "name a folder that holds it")
    missing = [name for name in IP_ADAPTER.weights if not (Path(source) / name).is_file()]
    if missing:
        raise UserError(f"There is no IP-Adapter in {source} ({missing[0]} is missing): name sdxl or its folder.")
    return Path(source)


def _ensure_downloaded(model: HubModel, instead: str = "use --pipeline.restyle.source embedded") -> Path:
    """The model's folder in the hub's cache.

    Args:
        model: Which one.
        instead: What a person without network can do, for the message.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def snapshot(offline: bool) -> Path:
        wanted = [*SMALL_FILES, *model.weights]
        return Path(
            snapshot_download(
                model.repository, revision=model.revision, allow_patterns=wanted, local_files_only=offline
            )
        )

    try:
        folder = snapshot(offline=True)
        if all((folder / name).is_file() for name in model.weights):
            return folder
    except FileNotFoundError:
        pass  # not in the cache at all
    try:
        folder = snapshot(offline=False)
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"SDXL's {model.repository} is neither in the local cache nor to be had from the hub "
            f"({type(error).__name__}): connect to the network once, or {instead}."
        ) from error
    missing = [name for name in model.weights if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"SDXL's {model.repository} is only partly in the local cache ({missing[0]} is missing): connect to the "
            f"network once, or {instead}."
        )
    return folder
