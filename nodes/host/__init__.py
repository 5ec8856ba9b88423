"""The only door to ComfyUI, and its stand-in. Nodes import from here and run unchanged with either.

Which of the two it is, the package's name decides: outside ComfyUI the pack is always `hyvideo_nodes` (see alias/),
inside it is named after its folder's path. So nothing is probed, and both can live in one process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING or __name__.partition(".")[0] == "hyvideo_nodes":
    from .headless import *  # noqa: F403 (exactly __all__, the same in both files; a test compares them)
else:
    from .comfyui import *  # noqa: F403
