"""The sub-command that writes a weight file anew."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from typing import Any

from ...hyvideo_core.errors import HyVideoError
from ...hyvideo_core.loading.save import DIALECTS, PRECISIONS, save_as

FAILED = 1


def add_command(commands: Any) -> None:
    """Adds `save-as` to the front door's sub-commands."""
    parser = commands.add_parser(
        "save-as",
        help="write a transformer or VAE in another layout or precision",
        description="Reads a HunyuanVideo transformer or VAE in any layout that the loaders open and writes it as "
        "one .safetensors file. Numbers keep their bits where the precision holds them; metadata and configuration "
        "are kept. The file appears when it is whole.",
    )
    parser.set_defaults(command=_save_as)
    parser.add_argument("source", type=Path, metavar="FILE", help="a file, or a folder that holds one model")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument(
        "--dialect", choices=DIALECTS, required=True, help="whose names to write; a VAE's are official or comfy"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, required=True, help="what to write numbers in; fp8_scaled for transformers"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error came up")


def _save_as(options: argparse.Namespace) -> int:
    try:
        save_as(
            options.source,
            options.target,
            dialect=options.dialect,
            precision=options.precision,
            overwrite=options.overwrite,
        )
    except HyVideoError as error:
        return _fail(str(error), options.debug)
    except OSError as error:
        return _fail(f"{options.target.name}: {error.strerror or error}", options.debug)
    print(options.target)
    return 0


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # names from files are in it, and a terminal obeys control characters
    print("".join(char if char.isprintable() else "?" for char in message), file=sys.stderr)
    return FAILED
