"""ComfyUI's ModelPatcher writes attributes on the module that it holds; ours must let it."""

from __future__ import annotations

import importlib
import pkgutil

import hyvideo_nodes.hyvideo_core as core
import torch

WRITTEN_BY_THE_HOST = (
    "device",
    "model_loaded_weight_memory",
    "lowvram_patch_counter",
    "model_lowvram",
    "current_weight_patches_uuid",
    "model_offload_buffer_memory",
)


def _module_classes() -> list[type[torch.nn.Module]]:
    found = {}
    for entry in pkgutil.walk_packages(core.__path__, core.__name__ + "."):
        for value in vars(importlib.import_module(entry.name)).values():
            if (
                isinstance(value, type)
                and issubclass(value, torch.nn.Module)
                and value.__module__.startswith(core.__name__)
            ):
                found[value.__qualname__] = value
    return list(found.values())


def test_no_module_of_ours_blocks_what_the_host_writes() -> None:
    classes = _module_classes()
    assert len(classes) > 10
    blocked = [
        f"{cls.__qualname__}.{name}"
        for cls in classes
        for name in WRITTEN_BY_THE_HOST
        if isinstance(member := getattr(cls, name, None), property) and member.fset is None
    ]
    assert blocked == []
