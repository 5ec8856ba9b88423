"""Whatever a header claims, the doctor answers: never another exception, always text and JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.doctor import inspect
from hyvideo_nodes.hyvideo_core.loading import recognise, signatures

MANIFESTS = (
    "hunyuanvideo_t2v_plain_transformer.official",
    "hunyuanvideo_t2v_transformer.diffusers",
    "hunyuanvideo_vae.official",
    "llava_llama3_8b.LlavaForConditionalGeneration",
    "clip_l_text.CLIPTextModel",
)
COMPANIONS = ("scale_weight", "weight_scale", "weight_scale_2", "comfy_quant", "lora_A.weight", "lora_down.weight")
DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "uint8")
CONFIGS = (
    None,
    "{}",
    '{"num_attention_heads": 0}',
    '{"rope_dim_list": [0, 0, 0]}',
    '{"norm_num_groups": 0, "hidden_act": []}',
    '{"text_config": 3, "rope_parameters": []}',
    '{"heads_num": 1e400}',
)
shapes = st.lists(st.sampled_from([1, 2, 3, 16, 64, 128]), max_size=5) | st.sampled_from(
    [[384, 1472], [3072, 33, 1, 2, 2]]
)


@pytest.fixture(scope="module")
def tables(manifest_dir: Path):
    return [json.loads((manifest_dir / f"{name}.json").read_text(encoding="utf-8")) for name in MANIFESTS]


@pytest.fixture(scope="module")
def names(tables):
    """Of the first layers of every published file, of every mark that the recogniser knows, and of companions."""
    first = {name for table in tables for name in table if not re.search(r"\.([2-9]|\d\d)\.", name)}
    sources = "".join(
        Path(module.__file__).read_text(encoding="utf-8") for module in (sys.modules[recognise.__module__], signatures)
    )
    marks = set(re.findall(r'"([\w\-]+(?:\.[\w\-]+)+)"', sources))
    return sorted(
        first | marks | {name.removesuffix("weight") + own for name in sorted(first)[::9] for own in COMPANIONS}
    )


def check(write, table, config):
    findings = inspect(write("m.safetensors", table, None if config is None else {"config": config}))
    assert str(findings).startswith("m.safetensors\n")
    assert findings.short
    assert findings.summary()
    assert json.loads(json.dumps(findings.to_json()))["is_sound"] == findings.is_sound


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), config=st.sampled_from(CONFIGS))
def test_any_names_of_any_shapes_are_answered(data, config, names, write):
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=30))
    check(write, {name: (data.draw(shapes), data.draw(st.sampled_from(DTYPES))) for name in chosen}, config)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), config=st.sampled_from(CONFIGS))
def test_published_files_with_some_tensors_spoiled_are_answered(data, config, tables, write):
    table = dict(data.draw(st.sampled_from(tables)))
    for name in data.draw(st.lists(st.sampled_from(sorted(table)), min_size=1, max_size=4, unique=True)):
        if data.draw(st.booleans()):
            del table[name]
        else:
            table[name] = (data.draw(shapes), data.draw(st.sampled_from(DTYPES)))
    check(write, table, config)
