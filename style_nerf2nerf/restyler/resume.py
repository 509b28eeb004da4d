"""State of a restyling on disk, from which an interrupted one is resumed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from eschernet_prior.base.files import atomic_path


class ResumeState:
    """State of a restyling on disk: `latents.safetensors` and `view_0000.safetensors` ….

    Each file has the fingerprint of its restyling, so that files of another restyling are ignored.
    """

    def __init__(self, folder: Path | None, fingerprint: str):
        self.folder = Path(folder) if folder is not None else None
        self.fingerprint = fingerprint

    def latents(self) -> tuple[int, Tensor | None]:
        """Number of finished steps and their latents; (0, None) without a state."""
        found = self._read("latents")
        return (int(found["step"]), found["latents"]) if found else (0, None)

    def keep_latents(self, step: int, latents: Tensor) -> None:
        """Save the latents of all views after a step."""
        self._write("latents", {"latents": latents.cpu().contiguous(), "step": torch.tensor(step)})

    def view(self, number: int) -> Tensor | None:
        """A decoded view; None if it is missing."""
        found = self._read(f"view_{number:04d}")
        return found["view"] if found else None

    def keep_view(self, number: int, view: Tensor) -> None:
        """Save a decoded view."""
        self._write(f"view_{number:04d}", {"view": view.contiguous()})

    def _read(self, name: str) -> dict[str, Tensor] | None:
        path = self.folder / f"{name}.safetensors" if self.folder else None
        if path is None or not path.exists():
            return None
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("fingerprint") != self.fingerprint:
                return None
        return load_file(path)

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        if self.folder:
            with atomic_path(self.folder / f"{name}.safetensors") as path:
                save_file(tensors, path, {"fingerprint": self.fingerprint})
