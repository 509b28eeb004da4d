"""Restyle all views of a scene together: SDXL whose self-attention shares keys and values over the views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from style_nerf2nerf.restyler.settings import Settings

if TYPE_CHECKING:
    from style_nerf2nerf.restyler.restyler import Restyler

__all__ = ["Restyler", "Settings"]


def __getattr__(name: str) -> type[Restyler]:
    """Import `Restyler` on first use: it brings diffusers along, which registering the methods must not."""
    if name == "Restyler":
        from style_nerf2nerf.restyler.restyler import Restyler

        return Restyler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
