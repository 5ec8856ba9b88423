"""The sub-command that says what files are."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ...hyvideo_core.doctor import inspect, model_to_fit
from ...hyvideo_core.errors import HyVideoError

NOT_SOUND = 1


def add_command(commands: Any) -> None:
    """Adds `inspect` to the front door's sub-commands."""
    parser = commands.add_parser(
        "inspect",
        help="say what weight files are",
        description="Says what each file is, which variant, how it is stored, what else it needs and which node opens "
        "it. Reads headers, never weights. Fails if a file is damaged or incomplete; a sound file of another model "
        "is no failure.",
    )
    parser.set_defaults(command=_inspect)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a file, or a folder that holds one model")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each file, each on one line")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="the transformer that a LoRA is to fit (default: the published 13B)"
    )


def _inspect(options: argparse.Namespace) -> int:
    try:
        model = model_to_fit(options.model) if options.model else None
    except HyVideoError as error:
        print(f"--model: {error}", file=sys.stderr)
        return NOT_SOUND
    except OSError as error:
        print(f"--model: {options.model} cannot be opened ({error.strerror})", file=sys.stderr)
        return NOT_SOUND
    code = 0
    for index, path in enumerate(options.files):
        # a folder given as . has no name of its own
        findings = inspect(path.absolute(), model)
        if options.json:
            # as it was typed: two folders may hold files of one name
            print(json.dumps({"path": str(path), **findings.to_json()}), flush=True)
        else:
            print(*([""] if index else []), findings, sep="\n", flush=True)
        code = code if findings.is_sound else NOT_SOUND
    return code
