"""The autoencoder against golden numbers of the reference implementation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.vae import Gaussian, Tiling, VideoAutoencoder, decode_tiled, encode_tiled
from safetensors import safe_open
from torch import Tensor, nn

DECODE, ENCODE, PROBE = 5e-5, 2e-5, 2e-5  # tolerances of the golden data's README


@dataclass(frozen=True)
class Case:
    name: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def check(self, got: Tensor, key: str, tolerance: float) -> None:
        expected = self.tensors[key]
        assert got.shape == expected.shape, f"{self.name} {key}"
        assert (got - expected).abs().max().item() <= tolerance, f"{self.name} {key}"


def read(path: Path) -> Case:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        meta = json.loads(metadata.get("config") or metadata.get("meta") or "{}")
        return Case(path.stem, {key: file.get_tensor(key) for key in file.keys()}, meta)  # noqa: SIM118


def cases(golden_dir: Path, pattern: str) -> Iterator[Case]:
    paths = sorted(golden_dir.glob(pattern))
    assert paths, f"no {pattern} in {golden_dir}"
    return map(read, paths)


@pytest.fixture(scope="module")
def weights(golden_dir: Path) -> Case:
    return read(golden_dir / "vae_weights.safetensors")


def build(weights: Case, tensors: dict[str, Tensor]) -> VideoAutoencoder:
    config = VaeConfig(
        block_channels=tuple(weights.meta["block_out_channels"]),
        layers_per_block=weights.meta["layers_per_block"],
        latent_channels=weights.meta["latent_channels"],
        norm_groups=weights.meta["norm_num_groups"],
        sample_size=weights.meta["sample_size"],
        sample_frames=weights.meta["sample_tsize"],
        scaling_factor=weights.meta["scaling_factor"],
    )
    vae = VideoAutoencoder(config)
    vae.load_state_dict(tensors, strict=True)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae(weights: Case) -> VideoAutoencoder:
    return build(weights, weights.tensors)


def stage_module(vae: VideoAutoencoder, stage: str) -> nn.Module:
    """The module whose output is a stage of the golden data, such as `decoder.mid.attn`."""
    half, name = stage.split(".", 1)
    coder = getattr(vae, half)
    if block := re.fullmatch(r"block(\d+)", name):
        blocks = coder.down_blocks if half == "encoder" else coder.up_blocks
        return list(list(blocks[int(block[1])].children())[-1])[-1]
    if resnet := re.fullmatch(r"mid\.resnet(\d+)", name):
        return coder.mid_block.resnets[int(resnet[1])]
    return {"mid": coder.mid_block, "mid.attn": coder.mid_block.attentions[0]}.get(name) or getattr(coder, name)


def record_stages(vae: VideoAutoencoder, case: Case) -> tuple[dict[str, Tensor], list[Any]]:
    seen: dict[str, Tensor] = {}
    handles = []
    for key in case.tensors:
        if key.startswith("stage."):

            def keep(_module: nn.Module, _args: Any, out: Tensor, key: str = key) -> None:
                seen[key] = out.clone()

            handles.append(stage_module(vae, key.removeprefix("stage.")).register_forward_hook(keep))
    return seen, handles


def check_stages(case: Case, seen: dict[str, Tensor], tolerance: float) -> None:
    assert set(seen) == {key for key in case.tensors if key.startswith("stage.")}
    for key, got in seen.items():
        # attention is stored as tokens
        case.check(got.flatten(2).transpose(1, 2) if case.tensors[key].ndim == 3 else got, key, tolerance)


def test_decoding_and_its_stages(golden_dir: Path, vae: VideoAutoencoder) -> None:
    for case in cases(golden_dir, "vae_decode_*f.safetensors"):
        seen, handles = record_stages(vae, case)
        video = vae.decode(case.tensors["in.z"])
        for handle in handles:
            handle.remove()
        check_stages(case, seen, DECODE)
        case.check(video, "out.sample", DECODE)
        case.check((video / 2 + 0.5).clamp(0, 1), "out.image01", DECODE)


def test_encoding_its_stages_and_distribution(golden_dir: Path, vae: VideoAutoencoder) -> None:
    for case in cases(golden_dir, "vae_encode_*f.safetensors"):
        seen, handles = record_stages(vae, case)
        moments = vae.encode(case.tensors["in.x"])
        for handle in handles:
            handle.remove()
        check_stages(case, seen, ENCODE)
        case.check(moments, "out.moments", ENCODE)
        gaussian = Gaussian.from_moments(moments)
        for name in ("mean", "logvar", "std", "mode"):
            case.check(getattr(gaussian, name), f"out.{name}", ENCODE)
        case.check(gaussian.sample(case.tensors["out.sample_noise"]), "out.sample", ENCODE)
        case.check(gaussian.mode * vae.config.scaling_factor, "out.scaled_latent", ENCODE)


def test_batches(golden_dir: Path, vae: VideoAutoencoder) -> None:
    for case in cases(golden_dir, "vae_batch*.safetensors"):
        case.check(vae.decode(case.tensors["in.z"]), "out.sample", DECODE)
        case.check(vae.encode(case.tensors["in.x"]), "out.moments", DECODE)


def test_norm_epsilons(golden_dir: Path, weights: Case) -> None:
    for case in cases(golden_dir, "vae_eps_probe*.safetensors"):
        rules = case.meta["scale_rules"].items()
        scaled = {}
        for key, weight in weights.tensors.items():
            factors = [factor for pattern, factor in rules if re.search(pattern, key)]
            scaled[key] = weight * factors[-1] if factors else weight
        vae = build(weights, scaled)
        case.check(vae.decode(case.tensors["in.z"]), "out.sample", PROBE)
        case.check(vae.encode(case.tensors["in.x"]), "out.moments", PROBE)


def official_tiling(vae: VideoAutoencoder, meta: dict[str, Any]) -> Tiling:
    config = replace(vae.config, sample_size=meta["tile_sample_min_size"], sample_frames=meta["tile_sample_min_tsize"])
    return Tiling.official(config, spatial=meta["spatial"], temporal=meta["temporal"], overlap_factor=meta["overlap"])


def test_tiled_decoding(golden_dir: Path, vae: VideoAutoencoder) -> None:
    for case in cases(golden_dir, "vae_tiled_decode_*.safetensors"):
        video = decode_tiled(vae, case.tensors["in.z"], official_tiling(vae, case.meta))
        case.check(video, "out.sample", DECODE)


def test_tiled_encoding(golden_dir: Path, vae: VideoAutoencoder) -> None:
    for case in cases(golden_dir, "vae_tiled_encode_*.safetensors"):
        moments = encode_tiled(vae, case.tensors["in.x"], official_tiling(vae, case.meta))
        case.check(moments, "out.moments", ENCODE)
