"""The command line: runs a shared workflow without ComfyUI. See `python PACK run --help`."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
