"""Run by COMFYUI_PYTHON, never by pytest: ComfyUI's own HunyuanVideo beside ours, as JSON on the last line of stdout.

Both sides read the same random weights from the same files, so their results can be compared as numbers.

Usage: in_native.py COMFYUI_DIR PACK SCRATCH
"""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from in_comfyui import SCRATCH, load_pack, open_comfyui
from safetensors.torch import save_file
from torch import Tensor

SEED = 3
SIGMAS = (1.0, 0.9, 0.6, 0.0)
PARTIAL_SIGMAS = (0.7, 0.4, 0.0)
TEXT_WIDTH, POOLED_WIDTH, NUM_TOKENS = 64, 768, 9


def main() -> None:
    """Runs every comparison and reports."""
    open_comfyui()
    pack = Pack(load_pack())
    importlib.import_module("folder_paths")  # fixes the model folders before files are written
    for kind in ("diffusion_models", "vae"):
        (SCRATCH / "models" / kind).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with torch.inference_mode():
        report = {"sampling": sampling(pack), "vae": autoencoder(pack), "foreign": foreign_vaes(pack)}
        report["eviction"] = eviction(pack)
    sys.stdout.write(json.dumps(report) + "\n")


class Pack:
    """The pack's parts and nodes, as ComfyUI has loaded them."""

    def __init__(self, root: ModuleType) -> None:
        self._root = root.__name__
        self._nodes = {node.GET_SCHEMA().node_id: node for node in self.part("nodes").NODES}

    def part(self, name: str) -> Any:
        """A module of the pack."""
        return importlib.import_module(f".{name}", self._root)

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """A node's results, its widgets at their defaults where nothing is given."""
        node = self._nodes[node_id]
        widgets = {socket.id: getattr(socket, "default", None) for socket in node.GET_SCHEMA().inputs}
        return node.execute(**{key: value for key, value in (widgets | inputs).items() if value is not None}).result


def native(module: str, node: str, **inputs: Any) -> tuple[Any, ...]:
    """The results of one of ComfyUI's nodes, of the older or the newer kind."""
    cls = getattr(importlib.import_module(module), node)
    if hasattr(cls, "execute"):
        return cls.execute(**inputs).result
    return getattr(cls(), cls.FUNCTION)(**inputs)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in standard deviations of the second."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().std())


# --- the transformer


def sampling(pack: Pack) -> dict[str, Any]:
    """Latents of the native sampler and ours, from the same file, noise, prompt and noise levels."""
    write_transformer(pack)
    name = "random.safetensors"
    (model,) = native("nodes", "UNETLoader", unet_name=name, weight_dtype="default")
    (recipe,) = pack.run("HYVLoadModel", model=name, precision="fp32")
    sides = SimpleNamespace(
        theirs=lambda prompt, latent, sigmas: sample_natively(model, prompt, latent, sigmas),
        ours=lambda prompt, latent, sigmas: pack.run(
            "HYVSampler", model=recipe, positive=prompt, latent=latent, sigmas=torch.tensor(sigmas), seed=SEED
        )[0],
    )
    ours, theirs = prompts(pack)
    size = {"width": 64, "height": 48, "length": 9, "batch_size": 1}
    (empty,) = pack.run("HYVEmptyLatent", **size)
    (their_empty,) = native("comfy_extras.nodes_hunyuan", "EmptyHunyuanLatentVideo", **size)
    start = {"samples": torch.randn(1, 16, 3, 6, 8), "name": "kept"}
    cases = {
        "our sockets": (ours, empty, SIGMAS),
        "native sockets": (theirs, their_empty, SIGMAS),
        "our prompt, native latent": (ours, their_empty, SIGMAS),
        "from latents": (ours, start, PARTIAL_SIGMAS),
    }
    results = {case: (sides.ours(*given), sides.theirs(*given)) for case, given in cases.items()}
    # how much noise the kept part shows the model is each sampler's own choice; what comes out of it is not
    kept = sides.ours(ours, start | {"noise_mask": (torch.arange(8) < 4).float().expand(1, 1, 3, 6, 8)}, PARTIAL_SIGMAS)
    return {
        "differences": {case: difference(a["samples"], b["samples"]) for case, (a, b) in results.items()},
        "kept": difference(kept["samples"][..., 4:], start["samples"][..., 4:]),
        "changed": difference(kept["samples"][..., :4], start["samples"][..., :4]),
        "keys": {case: sorted(ours) for case, (ours, _) in results.items()},
    }


def write_transformer(pack: Pack) -> None:
    """A small transformer that ComfyUI recognises: heads of 128, pooled width 768."""
    config = pack.part("hyvideo_core.config").TransformerConfig(
        hidden_size=256,
        num_heads=2,
        num_double_blocks=1,
        num_single_blocks=1,
        rope_axes=(16, 56, 56),
        text_width=TEXT_WIDTH,
        pooled_width=POOLED_WIDTH,
        has_guidance=True,
    )
    transformer = pack.part("hyvideo_core.model").Transformer(config)
    save_file(transformer.state_dict(), SCRATCH / "models" / "diffusion_models" / "random.safetensors")


def prompts(pack: Pack) -> tuple[Any, Any]:
    """One prompt as our text node writes it, and as native nodes do, with a mask and a guidance."""
    states, pooled = torch.randn(1, NUM_TOKENS, TEXT_WIDTH), torch.randn(1, POOLED_WIDTH)
    conditioning = pack.part("hyvideo_core.text_encoders.conditioning").Conditioning(states=states, pooled=pooled)
    mask = torch.ones(1, NUM_TOKENS, dtype=torch.long)
    extra = {"pooled_output": pooled, "attention_mask": mask, "guidance": 3.5}
    return pack.part("nodes.sockets").write_conditioning(conditioning, "video"), [[states, extra]]


def sample_natively(model: Any, prompt: Any, latent: dict[str, Any], sigmas: tuple[float, ...]) -> dict[str, Any]:
    """Latents of ComfyUI's Euler sampler."""
    custom = "comfy_extras.nodes_custom_sampler"
    (sampler,) = native(custom, "KSamplerSelect", sampler_name="euler")
    return native(
        custom,
        "SamplerCustom",
        model=model,
        add_noise=True,
        noise_seed=SEED,
        cfg=1.0,
        positive=prompt,
        negative=prompt,
        sampler=sampler,
        sigmas=torch.tensor(sigmas),
        latent_image=latent,
    )[0]


# --- the autoencoder


def autoencoder(pack: Pack) -> dict[str, Any]:
    """Pixels and latents of the native VAE and ours, of full size, and each in the other's nodes."""
    weights = native_vae_weights(pack)
    theirs = importlib.import_module("comfy.sd").VAE(sd=dict(weights))
    save_file(weights, SCRATCH / "models" / "vae" / "random.safetensors")
    (ours,) = pack.run("HYVLoadVAE", vae="random.safetensors", precision="fp32")
    frame, clip = ({"samples": torch.randn(1, 16, count, 4, 8)} for count in (1, 2))
    (their_frame,), (our_frame,) = decoded_by_both(pack, theirs, ours, frame)
    (their_clip,), (our_clip,) = decoded_by_both(pack, theirs, ours, clip)
    (their_latent,) = native("nodes", "VAEEncode", vae=theirs, pixels=our_frame)
    (our_latent,) = pack.run("HYVVAEEncode", vae=ours, pixels=our_frame)
    tiles = {"tile_size": 32, "overlap": 8, "temporal_size": 64, "temporal_overlap": 16}
    (tiled,) = pack.run("HYVVAEDecode", vae=theirs, samples=clip, **tiles)
    (their_tiled,) = native("nodes", "VAEDecodeTiled", vae=theirs, samples=clip, **tiles)
    (whole,) = pack.run("HYVVAEDecode", vae=theirs, samples=clip, tile_size=0, temporal_size=0)
    return {
        "keys that one side lacks": sorted(set(theirs.get_sd()) ^ set(weights)),
        "clips": [list(our_clip.shape), list(their_clip.shape)],
        "decoded": difference(our_frame, their_frame),
        "encoded": difference(our_latent["samples"], their_latent["samples"]),
        "native VAE in our node": [difference(whole, their_clip), difference(tiled, their_tiled)],
        "tiles matter": difference(tiled, whole) > 0,
    }


def decoded_by_both(pack: Pack, theirs: Any, ours: Any, latent: dict[str, Any]) -> tuple[Any, Any]:
    """Images of the native VAE in its node, and of ours in ours."""
    return native("nodes", "VAEDecode", vae=theirs, samples=latent), pack.run("HYVVAEDecode", vae=ours, samples=latent)


def native_vae_weights(pack: Pack) -> dict[str, Tensor]:
    """Random weights of a full-size VAE under ComfyUI's names, half precision as in its usual file."""
    vae, config = pack.part("hyvideo_core.vae"), pack.part("hyvideo_core.config")
    dialect = pack.part("hyvideo_core.loading.key_maps").COMFY_VAE
    weights = {}
    for key, value in vae.VideoAutoencoder(config.VaeConfig()).state_dict().items():
        (name,) = dialect.sources(key)
        # its attention is made of convolutions
        is_linear = "attn_1" in name and value.ndim == 2
        weights[name] = (value[:, :, None, None, None] if is_linear else value).half().contiguous()
    return weights


def foreign_vaes(pack: Pack) -> dict[str, str]:
    """What our decode node says of VAEs that are not HunyuanVideo's."""
    taesd = importlib.import_module("comfy.taesd.taesd").TAESD()
    image_vae = importlib.import_module("comfy.sd").VAE(sd=taesd.state_dict())
    said = {}
    for name, vae in {"image": image_vae, "unknown": object()}.items():
        try:
            pack.run("HYVVAEDecode", vae=vae, samples={"samples": torch.zeros(1, 16, 1, 4, 4)})
        except pack.part("hyvideo_core.errors").WrongModelError as error:
            said[name] = str(error)
    return said


# --- memory


def eviction(pack: Pack) -> dict[str, Any]:
    """Who is loaded while two models take turns on a device that has room for one (its memory is made up)."""
    memory = importlib.import_module("comfy.model_management")
    host = pack.part("nodes.host")
    device = torch.device("cpu", 0)  # to the host another device than "cpu", to torch the same
    memory.unload_all_models()
    memory.get_torch_device = lambda: device
    ours = host.make_patcher(torch.nn.Linear(4096, 4096), "transformer")
    other = importlib.import_module("comfy.model_patcher").ModelPatcher(
        torch.nn.Linear(4096, 4096), load_device=device, offload_device=torch.device("cpu")
    )
    room = memory.minimum_inference_memory() + 1.5 * ours.model_size()

    def free(dev: Any = None, torch_free_too: bool = False) -> Any:
        left = room - sum(loaded.model_loaded_memory() for loaded in memory.current_loaded_models)
        return (left, left) if torch_free_too else left

    memory.get_free_memory = free
    turns = []
    for place in (lambda: host.place(ours), lambda: memory.load_models_gpu([other]), lambda: host.place(ours)):
        place()
        turns.append([patcher.loaded_size() / patcher.model_size() for patcher in (ours, other)])
    return {"turns": turns, "kind": type(ours).__name__, "device": str(ours.load_device)}


if __name__ == "__main__":
    main()
