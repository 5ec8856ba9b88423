"""The few nodes of ComfyUI that our templates use, with the same ids and inputs, written for the command line."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...hyvideo_core.errors import CheckpointError, UntrustedFileError
from ...hyvideo_core.loading import open_checkpoint
from ..host import (
    OUT_OF_MEMORY,
    check_interrupt,
    empty_cache,
    input_folder,
    io,
    make_patcher,
    model_files,
    output_folder,
    place,
    progress,
    resolve,
    temp_folder,
)
from ..host.folders import LONGEST_NAME, contained
from .image_ops import FILTERS, crop_to_aspect, resize, upscale_tiled
from .video_io import VideoClip, load_image, save_mp4, save_png

UpscaleModel = io.Custom("UPSCALE_MODEL")
LONGEST_PREFIX = LONGEST_NAME - 30  # bytes; the rest is for the number, the ending, and the mark of an unfinished file

# --- files


def free_names(folder: Path, prefix: str, extension: str, size: tuple[int, int]) -> Iterator[Path]:
    """Free names PREFIX_00001_.EXTENSION in a folder, numbered on as ComfyUI does, without end.

    Args:
        prefix: may name a sub-folder and hold %year% %month% %day% %hour% %minute% %second% %width% %height%.
        size: width and height, for the prefix.
    Raises:
        UntrustedFileError: the prefix leaves the folder.
    """
    now = time.localtime()
    known = {"year": now.tm_year, "month": now.tm_mon, "day": now.tm_mday, "hour": now.tm_hour, "minute": now.tm_min}
    known |= {"second": now.tm_sec, "width": size[0], "height": size[1]}
    for name, value in known.items():
        prefix = prefix.replace(f"%{name}%", f"{value:02}")
    base = contained(folder, prefix)
    pattern = re.compile(re.escape(base.name) + r"_(\d+)_")
    taken = [match for path in base.parent.glob("*") if (match := pattern.match(path.name))]
    for number in count(max((int(match[1]) for match in taken), default=0) + 1):
        yield base.with_name(f"{base.name}_{number:05}_.{extension}")


def check_prefix(prefix: str) -> bool | str:
    """Whether files can be called so and written there: the message if not."""
    try:
        path = contained(output_folder(), prefix)
    except UntrustedFileError as error:
        return str(error)
    if not Path(prefix).name:
        return f'"{prefix}" names a folder; add the beginning of a file name'
    if len(path.name.encode()) > LONGEST_PREFIX:
        return f'"{path.name[:40]}..." is too long for the beginning of a file name; shorten it'
    parents = path.absolute().parents
    existing = next((folder for folder in parents if os.access(folder, os.F_OK)), parents[-1])
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return f"nothing can be written into {existing}; choose another folder with --output-dir"
    return True


def _reported(path: Path, root: Path, kind: str) -> dict[str, str]:
    """How nodes tell the front end about a file."""
    return {"filename": path.name, "subfolder": path.parent.relative_to(root).as_posix(), "type": kind}


def _metadata(prompt: dict[str, Any] | None) -> dict[str, Any]:
    return {} if prompt is None else {"prompt": prompt}


def _save_images(
    images: Tensor, prefix: str, root: Path, kind: str, prompt: dict[str, Any] | None
) -> list[dict[str, str]]:
    height, width = images.shape[1:3]
    entries = []
    for frame, path in zip(images, free_names(root, prefix, "png", (width, height)), strict=False):
        check_interrupt()
        save_png(path, frame, _metadata(prompt))
        entries.append(_reported(path, root, kind))
    return entries


class SaveImage(io.ComfyNode):
    """Writes a numbered PNG per image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveImage",
            display_name="Save Image",
            category="image",
            inputs=[io.Image.Input("images"), io.String.Input("filename_prefix", default="ComfyUI")],
            outputs=[io.Image.Output("images")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str = "x") -> bool | str:
        return check_prefix(filename_prefix)

    @classmethod
    def execute(cls, images: Tensor, filename_prefix: str) -> io.NodeOutput:
        entries = _save_images(images, filename_prefix, output_folder(), "output", cls.hidden.prompt)
        return io.NodeOutput(images, ui={"images": entries})


class PreviewImage(io.ComfyNode):
    """Writes PNGs into the temporary folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PreviewImage",
            display_name="Preview Image",
            category="image",
            inputs=[io.Image.Input("images")],
            outputs=[io.Image.Output("images")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor) -> io.NodeOutput:
        entries = _save_images(images, "preview", temp_folder(), "temp", cls.hidden.prompt)
        return io.NodeOutput(images, ui={"images": entries})


class LoadImage(io.ComfyNode):
    """Reads a picture of the input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = input_folder()
        known = set(Image.registered_extensions())
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        names = [path.name for path in paths if path.suffix.lower() in known]
        return io.Schema(
            node_id="LoadImage",
            display_name="Load Image",
            category="image",
            inputs=[io.Combo.Input("image", options=names, extra_dict={"image_upload": True})],
            outputs=[io.Image.Output(), io.Mask.Output()],
        )

    @classmethod
    def validate_inputs(cls, image: str = "") -> bool | str:
        try:
            path = contained(input_folder(), str(image))
        except UntrustedFileError as error:
            return str(error)
        return path.is_file() or f"there is no picture {image!r} in {input_folder()}; put it there or use --input-dir"

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        return io.NodeOutput(*load_image(contained(input_folder(), image)))


# --- video


class CreateVideo(io.ComfyNode):
    """Joins frames and a frame rate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CreateVideo",
            display_name="Create Video",
            category="video",
            inputs=[
                io.Image.Input("images"),
                io.Float.Input("fps", default=30.0, min=1.0, max=120.0, step=1.0),
                io.Int.Input("bit_depth", default=8, min=8, max=8, optional=True),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(cls, images: Tensor, fps: float, bit_depth: int = 8) -> io.NodeOutput:  # noqa: ARG003 (8 is all)
        return io.NodeOutput(VideoClip(images[..., :3], Fraction(fps).limit_denominator(1001)))


class SaveVideo(io.ComfyNode):
    """Writes a numbered h264 mp4. The dotted inputs are how newer front ends write the choice of codec."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        codecs = ["auto", "h264"]
        return io.Schema(
            node_id="SaveVideo",
            display_name="Save Video",
            category="video",
            inputs=[
                io.Video.Input("video"),
                io.String.Input("filename_prefix", default="video/ComfyUI"),
                io.Combo.Input("format", options=["auto", "mp4"], default="auto"),
                io.Combo.Input("codec", options=codecs, default="auto", optional=True),
                io.Combo.Input("format.codec", options=codecs, optional=True),
                io.Combo.Input("format.codec.encoding", options=["auto"], optional=True),
            ],
            outputs=[io.Video.Output("video")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str = "x") -> bool | str:
        return check_prefix(filename_prefix)

    @classmethod
    def execute(cls, video: VideoClip, filename_prefix: str, **_choices: str) -> io.NodeOutput:
        height, width = video.images.shape[1:3]
        path = next(free_names(output_folder(), filename_prefix, "mp4", (width, height)))
        save_mp4(path, video, _metadata(cls.hidden.prompt))
        entry = _reported(path, output_folder(), "output")
        return io.NodeOutput(video, ui={"images": [entry], "animated": (True,)})


# --- size


class ImageScale(io.ComfyNode):
    """Resizes to a width and a height; 0 keeps the proportions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageScale",
            display_name="Upscale Image",
            category="image/upscaling",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("upscale_method", options=list(FILTERS)),
                io.Int.Input("width", default=512, min=0, max=16384, step=1),
                io.Int.Input("height", default=512, min=0, max=16384, step=1),
                io.Combo.Input("crop", options=["disabled", "center"]),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> io.NodeOutput:
        if not width and not height:
            return io.NodeOutput(image)
        full_height, full_width = image.shape[1:3]
        width = width or max(1, round(full_width * height / full_height))
        height = height or max(1, round(full_height * width / full_width))
        part = crop_to_aspect(image, width, height) if crop == "center" else image
        return io.NodeOutput(resize(part, width, height, upscale_method))


class ImageScaleBy(io.ComfyNode):
    """Resizes by a factor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageScaleBy",
            display_name="Upscale Image By",
            category="image/upscaling",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("upscale_method", options=list(FILTERS)),
                io.Float.Input("scale_by", default=1.0, min=0.01, max=8.0, step=0.01),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: Tensor, upscale_method: str, scale_by: float) -> io.NodeOutput:
        height, width = (max(1, round(size * scale_by)) for size in image.shape[1:3])
        return io.NodeOutput(resize(image, width, height, upscale_method))


class UpscaleModelLoader(io.ComfyNode):
    """Opens an upscaling model through spandrel, which knows their architectures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UpscaleModelLoader",
            display_name="Load Upscale Model",
            category="loaders",
            inputs=[io.Combo.Input("model_name", options=model_files("upscale_models"))],
            outputs=[UpscaleModel.Output()],
        )

    @classmethod
    def validate_inputs(cls) -> bool | str:
        try:
            importlib.import_module("spandrel")
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit this torch
            return (
                f"upscaling models need the package spandrel, which cannot be imported here ({error}); install it with "
                "pip install spandrel, and a torchvision that was built for your torch"
            )
        return True

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        import spandrel

        checkpoint = open_checkpoint(resolve("upscale_models", model_name))
        with checkpoint.reading() as read:
            weights = {name: read(name) for name in checkpoint.tensors}
        try:
            model = spandrel.ModelLoader().load_from_state_dict(weights)
        except spandrel.UnsupportedModelError as error:
            raise CheckpointError(f"{model_name} is no upscaling model that spandrel knows; choose another") from error
        if not isinstance(model, spandrel.ImageModelDescriptor):
            raise CheckpointError(f"{model_name} takes more than one image; choose a model for single images")
        return io.NodeOutput((model, make_patcher(model.model.eval(), "vae")))


class ImageUpscaleWithModel(io.ComfyNode):
    """Enlarges each frame with an upscaling model, in tiles, smaller ones when memory runs out."""

    MARGIN = 16
    SMALLEST_TILE = 64

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageUpscaleWithModel",
            display_name="Upscale Image (using Model)",
            category="image/upscaling",
            inputs=[UpscaleModel.Input("upscale_model"), io.Image.Input("image")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, upscale_model: tuple[Any, Any], image: Tensor) -> io.NodeOutput:
        model, patcher = upscale_model
        device = place(patcher)
        frames, height, width, _ = image.shape
        result = torch.empty(frames, height * model.scale, width * model.scale, 3)
        bar, tile = progress(frames), 512
        for index, frame in enumerate(image[..., :3]):
            check_interrupt()
            pixels = frame.movedim(-1, 0)[None].to(device, torch.float32)
            large, tile = cls._upscale(pixels, model, tile)
            result[index] = large[0].movedim(0, -1).clamp(0, 1).cpu()
            bar.update(index + 1)
        return io.NodeOutput(result)

    @classmethod
    def _upscale(cls, pixels: Tensor, model: Any, tile: int) -> tuple[Tensor, int]:
        """One frame, and the tile size that fitted."""
        while True:
            try:
                return upscale_tiled(pixels, model, model.scale, tile, cls.MARGIN), tile
            except OUT_OF_MEMORY:
                if tile <= cls.SMALLEST_TILE:
                    raise
            tile //= 2
            empty_cache()


# --- latents


class VAEDecode(io.ComfyNode):
    """Latents to images, through the VAE's own decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VAEDecode",
            display_name="VAE Decode",
            category="latent",
            inputs=[io.Latent.Input("samples"), io.Vae.Input("vae")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], vae: Any) -> io.NodeOutput:
        images: Tensor = vae.decode(samples["samples"])
        return io.NodeOutput(images.flatten(0, -4) if images.ndim > 4 else images)


class VAEEncode(io.ComfyNode):
    """Images to latents, through the VAE's own encode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VAEEncode",
            display_name="VAE Encode",
            category="latent",
            inputs=[io.Image.Input("pixels"), io.Vae.Input("vae")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, pixels: Tensor, vae: Any) -> io.NodeOutput:
        return io.NodeOutput({"samples": vae.encode(pixels[..., :3])})


CORE_NODES: list[type[io.ComfyNode]] = [
    CreateVideo,
    ImageScale,
    ImageScaleBy,
    ImageUpscaleWithModel,
    LoadImage,
    PreviewImage,
    SaveImage,
    SaveVideo,
    UpscaleModelLoader,
    VAEDecode,
    VAEEncode,
]
