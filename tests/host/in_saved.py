"""Run by COMFYUI_PYTHON, never by pytest: files that save-as wrote in ComfyUI's own loader, and files that its own
quantization wrote in ours, as JSON.

Usage: in_saved.py COMFYUI_DIR PACK SCRATCH
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from in_comfyui import SCRATCH, load_pack, open_comfyui
from in_native import SEED, SIGMAS, Pack, difference, prompts, sample_natively, write_transformer
from safetensors.torch import load_file, save_file

DIALECTS = ("official", "comfy")  # ComfyUI reads no HunyuanVideo transformer under diffusers' names
FORMATS = ("float8_e4m3fn", "float8_e5m2", "nvfp4")
BIG_LAYERS = (
    "attn_qkv.weight",
    "attn_proj.weight",
    "mlp.fc1.weight",
    "mlp.fc2.weight",
    "linear1.weight",
    "linear2.weight",
)
PRECISIONS = ("fp32", "bf16", "fp16", "fp8_scaled")


def main() -> None:
    """Saves one model in every way and samples from each file natively and with our nodes."""
    open_comfyui()
    pack = Pack(load_pack())
    importlib.import_module("folder_paths")  # fixes the model folders before files are written
    folder = SCRATCH / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with torch.inference_mode():
        write_transformer(pack)
        given = prompts(pack)
        report = {"from the source": results(pack, "random.safetensors", given)}
        for dialect in DIALECTS:
            for precision in PRECISIONS:
                name = f"{dialect}_{precision}.safetensors"
                save_as = pack.part("hyvideo_core.loading.save").save_as
                save_as(folder / "random.safetensors", folder / name, dialect=dialect, precision=precision)
                report[f"{dialect} {precision}"] = results(pack, name, given)
        # a file that ComfyUI does not read, and what makes one of it that it does
        parts, whole = folder / "parts.safetensors", folder / "whole.safetensors"
        save_as(folder / "random.safetensors", parts, dialect="diffusers", precision="fp8_scaled")
        save_as(parts, whole, dialect="official", precision="fp8_scaled")
        report["by way of diffusers"] = results(pack, whole.name, given)
        for kind in FORMATS if importlib.util.find_spec("comfy_kitchen") else ():
            quantize(folder / "random.safetensors", folder / f"{kind}.safetensors", kind)
            report[kind] = results(pack, f"{kind}.safetensors", given)
    plain = report["from the source"]["ours"]
    differences = {
        case: {
            "of both": difference(found["ours"], found["theirs"]),
            "to the source": difference(found["ours"], plain),
        }
        for case, found in report.items()
    }
    sys.stdout.write(json.dumps(differences) + "\n")


def quantize(source: Path, target: Path, kind: str) -> None:
    """The big layers of the blocks as ComfyUI's own package stores them, with its marks."""
    kitchen = importlib.import_module("comfy_kitchen")
    tensors = load_file(source)
    mark = torch.tensor(list(json.dumps({"format": kind, "full_precision_matrix_mult": True}).encode()))
    for name in [name for name in tensors if name.endswith(BIG_LAYERS)]:
        layer, weight = name.removesuffix(".weight"), tensors[name]
        tensors[f"{layer}.comfy_quant"] = mark.to(torch.uint8)
        if kind == "nvfp4":
            scale = weight.abs().max() / (448 * 6)
            tensors[name], tensors[f"{layer}.weight_scale"] = kitchen.quantize_nvfp4(weight, scale, pad_16x=False)
            tensors[f"{layer}.weight_scale_2"] = scale
        else:
            dtype = getattr(torch, kind)
            tensors[f"{layer}.weight_scale"] = scale = weight.abs().max() / torch.finfo(dtype).max
            tensors[name] = kitchen.quantize_per_tensor_fp8(weight, scale, dtype)
    save_file(tensors, target)


def results(pack: Pack, name: str, given: tuple[Any, Any]) -> dict[str, torch.Tensor]:
    """Latents of both sides from one file, computed in float32."""
    (latent,) = pack.run("HYVEmptyLatent", width=64, height=48, length=9, batch_size=1)
    (recipe,) = pack.run("HYVLoadModel", model=name, precision="fp32")
    ours = pack.run(
        "HYVSampler", model=recipe, positive=given[0], latent=latent, sigmas=torch.tensor(SIGMAS), seed=SEED
    )[0]
    sd = importlib.import_module("comfy.sd")
    model = sd.load_diffusion_model(
        str(SCRATCH / "models" / "diffusion_models" / name), model_options={"dtype": torch.float32}
    )
    theirs = sample_natively(model, given[0], latent, SIGMAS)
    return {"ours": ours["samples"], "theirs": theirs["samples"]}


if __name__ == "__main__":
    main()
