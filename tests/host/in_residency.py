"""Run by COMFYUI_PYTHON, never by pytest: how ComfyUI and a streamed model share a device, as JSON on the last line.

The device's memory is made up; whole blocks on it are the proof.

Usage: in_residency.py COMFYUI_DIR PACK SCRATCH
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import torch
from in_comfyui import SCRATCH, load_pack, open_comfyui
from in_native import Pack, prompts, write_transformer

NUM_BLOCKS, WIDTH = 16, 1024
BLOCK = 4 * WIDTH * WIDTH


def main() -> None:
    """Plays every situation and reports how many blocks were kept after it."""
    open_comfyui()
    pack = Pack(load_pack())
    importlib.import_module("folder_paths")
    (SCRATCH / "models" / "diffusion_models").mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        card = Card(pack)
        sys.stdout.write(json.dumps(situations(card) | {"runs": runs(card, pack)}) + "\n")


class Card:
    """A device with room for the host's own minimum and 12 blocks, and a streamed model of 16."""

    def __init__(self, pack: Pack) -> None:
        self.memory: Any = importlib.import_module("comfy.model_management")
        self.host, core = pack.part("nodes.host"), pack.part("hyvideo_core.memory")
        device = torch.device("cpu", 0)  # to the host another device than "cpu", to torch the same
        self.memory.unload_all_models()
        self.memory.get_torch_device = lambda: device
        self.memory.is_device_cpu = lambda device: False
        self.memory.EXTRA_RESERVED_VRAM = 0
        self.memory.vram_state = self.memory.VRAMState.NORMAL_VRAM
        self.least = self.memory.minimum_inference_memory()
        self.room = self.least + 12 * BLOCK
        self.memory.get_free_memory = self.free
        self.host.free_bytes.__globals__["free_bytes"] = lambda device: (
            self.free() - self.memory.extra_reserved_memory()
        )
        self.model = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(NUM_BLOCKS))
        layout = core.Layout(walked=tuple(str(index) for index in range(NUM_BLOCKS)))
        self.residency = core.Residency(self.model, layout, core.PlainDevice(device))
        self.patcher = self.host.make_streamed_patcher(self.residency, "transformer")
        self.other = importlib.import_module("comfy.model_patcher").ModelPatcher(
            torch.nn.Linear(WIDTH, 8 * WIDTH, bias=False), load_device=device, offload_device=torch.device("cpu")
        )

    def free(self, dev: Any = None, torch_free_too: bool = False) -> Any:
        left = self.room - self.residency.kept_bytes - self.other.loaded_size()
        return (left, left) if torch_free_too else left

    def place(self, activations: float = 0) -> float:
        self.host.place_streamed(self.patcher, int(activations))
        return self.kept()

    def kept(self) -> float:
        return self.residency.kept_bytes / BLOCK


def situations(card: Card) -> dict[str, Any]:
    """What is kept, in blocks, after each thing that can happen; in this order."""
    memory, seen = card.memory, {"what fits": card.place()}
    seen["again"] = card.place()
    seen["a larger run"] = card.place(card.least + 8 * BLOCK)
    seen["a smaller run"] = card.place()
    memory.load_models_gpu([card.other], force_full_load=True)
    seen["beside another model"] = card.kept()
    seen["the other model"] = card.other.loaded_size() / BLOCK
    seen["the other model is sent away"] = card.place()
    memory.unload_all_models()
    seen["everything unloaded"] = card.kept()
    seen["after that"] = card.place()
    memory.free_memory(card.least + 5.5 * BLOCK, card.patcher.load_device)
    seen["some memory asked for"] = card.kept()
    card.residency.limit_to(3 * BLOCK)
    seen["a budget"] = card.place()
    card.residency.limit_to(card.residency.most_bytes)
    flags(card, seen)
    clone = card.patcher.clone()
    seen["clone"] = [clone.is_clone(card.patcher), clone.loaded_size() == card.patcher.loaded_size()]
    seen["sizes"] = [card.patcher.model_size() / BLOCK, type(card.patcher.model).__name__]
    return seen


def flags(card: Card, seen: dict[str, Any]) -> None:
    """The user's options, from an empty device each."""
    memory, before = card.memory, card.memory.vram_state
    for state in ("NO_VRAM", "LOW_VRAM", "HIGH_VRAM"):
        memory.unload_all_models()
        memory.vram_state = memory.VRAMState[state]
        seen[state] = card.place()
    memory.vram_state = before
    memory.unload_all_models()
    memory.EXTRA_RESERVED_VRAM = 2 * BLOCK
    seen["a reserve"] = card.place()
    memory.EXTRA_RESERVED_VRAM = 0


def runs(card: Card, pack: Pack) -> dict[str, Any]:
    """The sampler with all weights kept, with none, interrupted, and after all were sent away."""
    device = pack.part("hyvideo_core.memory").PlainDevice(card.patcher.load_device)
    card.host.stream_device_for = lambda role: device
    card.room = 2 * card.least + 10**9
    torch.manual_seed(0)
    write_transformer(pack)
    prompt, _ = prompts(pack)
    (latent,) = pack.run("HYVEmptyLatent", width=64, height=48, length=9)
    (model,) = pack.run("HYVLoadModel", model="random.safetensors", precision="fp32")

    def sample(budget: str) -> torch.Tensor:
        (limited,) = pack.run("HYVMemory", model=model, budget=budget)
        return pack.run("HYVSampler", model=limited, positive=prompt, latent=latent, steps=2, seed=1)[0]["samples"]

    whole = sample("auto")
    kept = [model.patcher.loaded_size(), model.patcher.model_size()]
    streamed = [bool(torch.equal(sample("0"), whole)), model.patcher.loaded_size()]
    again = [bool(torch.equal(sample("auto"), whole)), model.patcher.loaded_size() == kept[0]]
    card.memory.interrupt_current_processing()
    try:
        sample("auto")
        stopped: list[Any] = ["not"]
    except card.host.Interrupted:
        stopped = ["stopped", model.patcher.loaded_size()]
    after = bool(torch.equal(sample("auto"), whole))
    card.memory.unload_all_models()
    unloaded = [model.patcher.loaded_size(), bool(torch.equal(sample("auto"), whole))]
    return {
        "kept": kept,
        "streamed": streamed,
        "again": again,
        "stopped": stopped,
        "after": after,
        "unloaded": unloaded,
        "patcher": type(model.patcher).__name__,
    }


if __name__ == "__main__":
    main()
