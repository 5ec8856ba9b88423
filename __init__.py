"""HunyuanVideo nodes for ComfyUI: entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Returns the extension that lists our nodes; imported late, so that the pack's import costs nothing."""
    from .nodes import extension

    return extension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
