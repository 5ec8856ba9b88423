"""Run by COMFYUI_PYTHON, never by pytest: what a real ComfyUI says of the pack, as JSON on the last line of stdout.

Usage: in_comfyui.py COMFYUI_DIR PACK SCRATCH
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

COMFYUI, PACK, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:4])


def main() -> None:
    """Loads the pack under both names in one process and reports."""
    open_comfyui()
    before = list(sys.path)
    pack = load_pack()
    real = importlib.import_module(".nodes.host", pack.__name__)
    report: dict[str, Any] = {"sys_path_unchanged": sys.path == before}
    sys.path.insert(0, str(PACK / "alias"))
    sys.path.insert(0, str(Path(__file__).parent))
    ours = importlib.import_module("hyvideo_nodes.nodes.host")
    headless = importlib.import_module("hyvideo_nodes.nodes.host.headless")
    headless.use_folders(headless.Folders(models=(SCRATCH / "models",)))  # the same lists of files on both sides
    report["doors"] = [type(real.io).__name__, type(ours.io).__name__]
    report["nodes"] = {
        theirs.GET_SCHEMA().node_id: [description(theirs), description(mine)]
        for theirs, mine in zip(node_classes(pack.__name__, real), node_classes("hyvideo_nodes", ours), strict=True)
    }
    report["core"] = core_inputs(importlib.import_module("hyvideo_nodes.nodes.cli.core_nodes").CORE_NODES)
    report["behaviour"] = behaviour(real)
    sys.stdout.write(json.dumps(report) + "\n")


def open_comfyui() -> None:
    """Makes ComfyUI importable, on the CPU and with SCRATCH as its base directory."""
    sys.argv = ["main.py", "--cpu", "--base-directory", str(SCRATCH)]
    sys.path.insert(0, str(COMFYUI))
    importlib.import_module("comfy.options").enable_args_parsing()


def load_pack() -> ModuleType:
    """Imports the pack as the host does: under its folder's path, with dots replaced."""
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def node_classes(package: str, host: Any) -> list[Any]:
    """The pack's own nodes, the command line's, and the probes."""
    own = getattr(importlib.import_module(".nodes", package), "NODES", [])
    core = importlib.import_module(".nodes.cli.core_nodes", package).CORE_NODES
    return [*own, *core, *importlib.import_module("probe_nodes").probes(host.io)]


def description(node: Any) -> dict[str, Any]:
    """What the front end would be told; JSON, so that tuples and lists compare equal."""
    return json.loads(json.dumps({"inputs": node.INPUT_TYPES(), "info": node.GET_NODE_INFO_V1()}))


def core_inputs(ours: list[Any]) -> dict[str, Any]:
    """ComfyUI's own nodes beside those that the command line has under the same ids: inputs and output types."""
    theirs = dict(importlib.import_module("nodes").NODE_CLASS_MAPPINGS)
    for name in ("nodes_video", "nodes_upscale_model"):
        for node in vars(importlib.import_module(f"comfy_extras.{name}")).values():
            if isinstance(node, type) and hasattr(node, "GET_SCHEMA") and hasattr(node, "INPUT_TYPES"):
                try:
                    theirs[node.GET_SCHEMA().node_id] = node
                except NotImplementedError:  # the base class
                    continue
    found = {}
    for node in ours:
        info, real = node.GET_NODE_INFO_V1(), theirs[node.GET_SCHEMA().node_id]
        found[info["name"]] = [[real.INPUT_TYPES(), list(real.RETURN_TYPES)], [info["input"], info["output"]]]
    return found


def behaviour(host: Any) -> dict[str, Any]:
    """Calls every function of the door."""
    import comfy.model_management as memory
    import folder_paths
    import latent_preview
    import torch

    models = SCRATCH / "models" / "vae"
    models.mkdir(parents=True, exist_ok=True)
    (models / "mine.safetensors").write_bytes(b"")
    (models / "mine.gguf").write_bytes(b"")
    (models / "sharded").mkdir(exist_ok=True)
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (models / "sharded" / name).write_bytes(b"")
    private = SCRATCH / "private"
    private.mkdir(exist_ok=True)
    (private / "hyvideo_embedded_probe.safetensors").write_bytes(b"")
    folder_paths.add_model_folder_path("hyvideo_vae", str(private))

    module = torch.nn.Linear(3, 2)
    with torch.inference_mode():
        patcher = host.make_patcher(module, "vae")
        device = host.place(patcher, memory_required=1000)
    module(torch.ones(1, 3)).sum().backward()

    factors, offsets = host.preview_factors()
    extension = host.extension([1, 2])
    roles = ("transformer", "vae", "text_encoders", "intermediate")
    methods = latent_preview.LatentPreviewMethod
    wanted = []
    for method in (methods.NoPreviews, methods.Auto):
        latent_preview.args.preview_method = method
        wanted.append(host.preview_wanted())
    host.progress(3).update(2)
    host.free_memory(1, device)
    host.empty_cache()
    return {
        "exports": sorted(host.__dict__.keys() & set(sys.modules[host.__name__ + ".headless_io"].__all__)),
        "host_files": folder_paths.get_filename_list("vae"),
        "our_files": host.model_files("vae"),
        "no_files": host.model_files("no_such_kind"),
        "resolved": [
            str(host.resolve("vae", name)) for name in host.model_files("vae") if "mine" in name or "probe" in name
        ],
        "folders": [str(f()) for f in (host.output_folder, host.input_folder, host.temp_folder, host.user_folder)],
        "devices": sorted({str(f(role)) for role in roles for f in (host.device_for, host.offload_device_for)}),
        "placed": [str(device), patcher.model is module, type(patcher).__name__, module.weight.grad is not None],
        "factors": [len(factors), len(factors[0]), len(offsets)],
        "wanted": wanted,
        "interrupt": interrupted(host, memory),
        "tokenizers": [str(path) for path in host.host_tokenizers("clip")],
        "is_vae": [
            host.is_host_vae(object()),
            host.is_host_vae(sys.modules["comfy.sd"].VAE.__new__(sys.modules["comfy.sd"].VAE)),
        ],
        "listed": asyncio.run(extension.get_node_list()),
        "is_extension": isinstance(extension, importlib.import_module("comfy_api.latest").ComfyExtension),
        "oom": all(issubclass(kind, BaseException) for kind in host.OUT_OF_MEMORY),
    }


def interrupted(host: Any, memory: Any) -> list[bool]:
    """Whether a check passes without a request to stop, and raises the host's own type after one."""
    host.check_interrupt()
    memory.interrupt_current_processing(True)
    try:
        host.check_interrupt()
    except host.Interrupted:
        return [True, True]
    return [True, False]


if __name__ == "__main__":
    main()
