"""The same tests with the oldest transformers that is supported, where a copy of it is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
OLDEST = "4.50."


def test_text_encoders_work_with_the_oldest_transformers() -> None:
    folder = os.environ.get("HYV_OLD_TRANSFORMERS")
    if not folder:
        pytest.skip(
            "transformers 4.50: set HYV_OLD_TRANSFORMERS to a folder made with pip install --no-deps --target FOLDER "
            "transformers==4.50.3 tokenizers==0.21.4 huggingface_hub==0.36.0"
        )
    env = {key: value for key, value in os.environ.items() if key != "HYV_OLD_TRANSFORMERS"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, env.get("PYTHONPATH")]))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)

    version = run("-c", "import transformers; print(transformers.__version__)").stdout
    assert version.startswith(OLDEST), f"{folder} holds transformers {version or 'not at all'}"
    tests = ["tests/core/text_encoders", "tests/parity/test_text.py"]
    result = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
