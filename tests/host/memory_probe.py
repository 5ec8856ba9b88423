"""A custom node file for the tests' ComfyUI: says what its process holds in memory."""

from __future__ import annotations

import gc

import comfy.model_management as memory
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}


@PromptServer.instance.routes.get("/memory_probe")
async def report(_: web.Request) -> web.Response:
    """Bytes of all living tensors, and the models that the host has loaded with their identity."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and item.device.type == "cpu"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    loaded = [holder.model.model for holder in memory.current_loaded_models]
    return web.json_response(
        {"bytes": sum(storages.values()), "loaded": {type(module).__name__: id(module) for module in loaded}}
    )
