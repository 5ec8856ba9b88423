"""Nodes that choose files. They read headers only; weights load when another node first needs them."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ..hyvideo_core.doctor import Findings, clip_findings, llama_findings, transformer_findings, vae_findings
from ..hyvideo_core.loading import (
    build_clip_encoder,
    build_llama_encoder,
    build_transformer,
    build_vae,
    check_clip,
    check_complete,
    check_llama,
    detect_clip,
    detect_llama,
    detect_transformer,
    detect_vae,
    open_checkpoint,
)
from ..hyvideo_core.memory import llama_layout, transformer_layout
from ..hyvideo_core.quantization import use_fp8_matmul
from ..hyvideo_core.text_encoders.tokenizers import CLIP, LLAMA3, find_tokenizer
from . import host
from .host import io
from .recipes import (
    FP8_MATMUL,
    MADE_FP8,
    PRECISIONS,
    ModelRecipe,
    TextEncodersRecipe,
    choose_dtype,
    fingerprint,
    share_weights,
)
from .sockets import HYVModel, HYVTextEncoders
from .vae import VideoVae

logger = logging.getLogger(__name__)

CATEGORY = "HunyuanVideo/loaders"
FP8_TOOLTIP = (
    " fp8_scaled: the blocks' big layers become fp8 with a scale for each row while they load, which halves the "
    "memory of a bf16 file. fp8_matmul: the same, and fp8 weights are multiplied in fp8, faster and less exact, on "
    "NVIDIA cards from the RTX 40 series on. What a file stores in fewer bits stays so with every choice."
)
NAMES = ("hunyuan", "hyvideo")
PRECISION_TOOLTIP = (
    "What the weights compute in. auto: {auto} on a GPU; on the CPU fp32, or bf16 where fp32 would take more than "
    "4 GiB."
)


def file_input(id: str, kind: str, tooltip: str, *words: str) -> Any:  # noqa: A002 (the host's spelling)
    """A list of the models of a kind; at first the first one is chosen whose name holds one of the words."""
    names = host.model_files(kind)
    likely = [name for word in words for name in names if word in name.lower()]
    default = next(iter([*likely, *names]), None)
    return io.Combo.Input(id, options=names, default=default, tooltip=tooltip)


def precision_input(auto: str, *more: str, tooltip: str = "") -> Any:
    """The precision widget; `auto` names what it stands for on a GPU, `more` are choices that only some nodes have."""
    return io.Combo.Input(
        "precision",
        options=[*PRECISIONS, *more],
        default="auto",
        tooltip=PRECISION_TOOLTIP.format(auto=auto) + tooltip,
    )


def told(*files: Findings) -> dict[str, list[str]]:
    """What was found in files, logged and shown on the node; gives it as what the node has to show."""
    for findings in files:
        logger.info("%s", findings.short)
        for note in findings.notes:
            logger.info("%s: %s", findings.file, note)
        if findings.beside:
            logger.warning("%s: %s", findings.file, findings.beside_words())
    text = "\n\n".join(findings.summary() for findings in files)
    host.show_text(text)
    return {"text": [text]}


class HYVLoadModel(io.ComfyNode):
    """A transformer file to HYV_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVLoadModel",
            display_name="HunyuanVideo Load Model",
            category=CATEGORY,
            description="Opens a HunyuanVideo transformer in any common layout (official, ComfyUI, diffusers; bf16, "
            "fp16, fp32, fp8 with and without scales, nvfp4, GGUF). Only the header is read here.",
            search_aliases=["hunyuan", "hyvideo", "diffusion model", "unet loader"],
            inputs=[
                file_input(
                    "model", "diffusion_models", "A file from models/diffusion_models, or the embedded model.", *NAMES
                ),
                precision_input("bf16", MADE_FP8, FP8_MATMUL, tooltip=FP8_TOOLTIP),
            ],
            outputs=[HYVModel.Output("model", tooltip="What the sampler needs; weights load at its first run.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str, precision: str) -> tuple[object, ...]:
        """Changes when the file does."""
        return (*fingerprint(host.resolve("diffusion_models", model)), precision)

    @classmethod
    def execute(cls, model: str, precision: str) -> io.NodeOutput:
        """Reads the header and hands on a recipe."""
        checkpoint = open_checkpoint(host.resolve("diffusion_models", model))
        detected = detect_transformer(checkpoint)
        findings = transformer_findings(checkpoint, detected, check_complete(detected))

        def build() -> torch.nn.Module:
            device = host.device_for("transformer")
            dtype = choose_dtype(precision, checkpoint, device, torch.bfloat16)
            transformer = build_transformer(detected, dtype=dtype, make_fp8=precision in (MADE_FP8, FP8_MATMUL))
            if precision == FP8_MATMUL:
                use_fp8_matmul(transformer, device)
            return transformer

        weights = share_weights("transformer", checkpoint, precision, build, layout=transformer_layout)
        return io.NodeOutput(ModelRecipe(detected=detected, precision=precision, weights=weights), ui=told(findings))


class HYVLoadTextEncoders(io.ComfyNode):
    """The two text encoder files to HYV_TEXT_ENCODERS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVLoadTextEncoders",
            display_name="HunyuanVideo Load Text Encoders",
            category=CATEGORY,
            description="Opens the language model (LLaVA-Llama-3) and CLIP-L. Single files or folders; tokenizers "
            "are found beside the files, under models/text_encoders or in ComfyUI itself. Nothing is downloaded.",
            search_aliases=["hunyuan", "hyvideo", "dual clip loader", "llava"],
            inputs=[
                file_input("llm", "text_encoders", "The language model, for example llava_llama3_fp16.", "llama"),
                file_input("clip", "text_encoders", "The CLIP text encoder, for example clip_l.", "clip"),
                precision_input("fp16, as published,"),
            ],
            outputs=[HYVTextEncoders.Output("text_encoders", tooltip="For HunyuanVideo Text Encode.")],
        )

    @classmethod
    def fingerprint_inputs(cls, llm: str, clip: str, precision: str) -> tuple[object, ...]:
        """Changes when one of the files does."""
        files = [host.resolve("text_encoders", name) for name in (llm, clip)]
        return (*map(fingerprint, files), precision)

    @classmethod
    def execute(cls, llm: str, clip: str, precision: str) -> io.NodeOutput:
        """Reads both headers, finds both tokenizers and hands on a recipe."""
        llm_file = open_checkpoint(host.resolve("text_encoders", llm))
        clip_file = open_checkpoint(host.resolve("text_encoders", clip))
        llm_config, clip_config = detect_llama(llm_file), detect_clip(clip_file)
        llm_findings = llama_findings(llm_file, llm_config, check_llama(llm_file, llm_config))
        findings = clip_findings(clip_file, clip_config, check_clip(clip_file, clip_config))

        def build_llm() -> torch.nn.Module:
            dtype = choose_dtype(precision, llm_file, host.device_for("text_encoders"), torch.float16)
            return build_llama_encoder(llm_file, llm_config, dtype=dtype)

        def build_clip() -> torch.nn.Module:
            dtype = choose_dtype(precision, clip_file, host.device_for("text_encoders"), torch.float16)
            return build_clip_encoder(clip_file, clip_config, dtype=dtype)

        return io.NodeOutput(
            TextEncodersRecipe(
                llm_config=llm_config,
                llm=share_weights("text_encoders", llm_file, precision, build_llm, layout=llama_layout),
                llm_tokenizer=find_tokenizer(
                    LLAMA3,
                    num_rows=llm_config.vocab_size,
                    weights=llm_file.path,
                    places=host.host_tokenizers("llama"),
                ),
                clip_config=clip_config,
                clip=share_weights("text_encoders", clip_file, precision, build_clip),
                clip_tokenizer=find_tokenizer(
                    CLIP,
                    num_rows=clip_config.vocab_size,
                    weights=clip_file.path,
                    places=host.host_tokenizers("clip"),
                ),
            ),
            ui=told(llm_findings, findings),
        )


class HYVLoadVAE(io.ComfyNode):
    """An autoencoder file to VAE, the native socket."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVLoadVAE",
            display_name="HunyuanVideo Load VAE",
            category=CATEGORY,
            description="Opens a HunyuanVideo VAE in either layout (official or ComfyUI). Its output fits our nodes "
            "and ComfyUI's own VAE nodes.",
            search_aliases=["hunyuan", "hyvideo", "vae loader"],
            inputs=[
                file_input("vae", "vae", "A file from models/vae, or the embedded one.", *NAMES),
                precision_input("fp16, as the reference does,"),
            ],
            outputs=[io.Vae.Output("vae", tooltip="For VAE nodes, ours and native ones.")],
        )

    @classmethod
    def fingerprint_inputs(cls, vae: str, precision: str) -> tuple[object, ...]:
        """Changes when the file does."""
        return (*fingerprint(host.resolve("vae", vae)), precision)

    @classmethod
    def execute(cls, vae: str, precision: str) -> io.NodeOutput:
        """Reads the header and hands on a VAE whose weights load at first use."""
        checkpoint = open_checkpoint(host.resolve("vae", vae))
        detected = detect_vae(checkpoint)
        findings = vae_findings(checkpoint, detected, check_complete(detected))

        def build() -> torch.nn.Module:
            dtype = choose_dtype(precision, checkpoint, host.device_for("vae"), torch.float16)
            return build_vae(detected, dtype=dtype)

        vae_object = VideoVae(detected.config, share_weights("vae", checkpoint, precision, build))
        return io.NodeOutput(vae_object, ui=told(findings))
