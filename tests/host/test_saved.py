"""Files that save-as writes give ComfyUI's own sampler our numbers; files of its own quantization give us its."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import report_of

ROUNDING = 1e-4
TO_THE_SOURCE = {"fp32": 1e-5, "bf16": 0.02, "fp16": 0.005, "fp8_scaled": 0.05}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What in_saved.py finds."""
    return report_of("in_saved.py", tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("precision", TO_THE_SOURCE)
@pytest.mark.parametrize("dialect", ["official", "comfy"])
def test_saved_files_are_read_alike_by_both(report: dict[str, Any], dialect: str, precision: str) -> None:
    found = report[f"{dialect} {precision}"]
    assert found["of both"] < ROUNDING
    assert found["to the source"] < TO_THE_SOURCE[precision]


def test_scaled_weights_that_were_split_are_read_alike_once_they_are_whole(report: dict[str, Any]) -> None:
    found = report["by way of diffusers"]
    assert found["of both"] < ROUNDING
    assert found == report["official fp8_scaled"]


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "nvfp4"])
def test_comfyuis_own_quantization_is_read_alike_by_both(report: dict[str, Any], kind: str) -> None:
    if kind not in report:
        pytest.skip("this ComfyUI has no comfy-kitchen")
    assert report[kind]["of both"] < ROUNDING
    assert 0 < report[kind]["to the source"] < 0.1
