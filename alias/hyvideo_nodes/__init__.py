"""The pack under one import name outside ComfyUI, whatever its folder is called."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2])]
