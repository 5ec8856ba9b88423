"""A folder of tiny random models in the official layouts, and the nodes that open them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import ClipTextConfig, LlamaConfig, VaeConfig, tiny
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.text_encoders import CLIP, LLAMA3, TEMPLATES, build_clip, build_llama
from hyvideo_nodes.hyvideo_core.vae import VideoAutoencoder
from hyvideo_nodes.nodes import NODES
from hyvideo_nodes.nodes.host import headless
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

TRANSFORMER = tiny(in_channels=16, out_channels=16)
VAE = VaeConfig(block_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4)
WORDS = r"\s*[\r\n]+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def write_transformer(path: Path) -> None:
    config = {"rope_dim_list": list(TRANSFORMER.rope_axes), "heads_num": TRANSFORMER.num_heads}
    weights = {key: value * 0.5 for key, value in Transformer(TRANSFORMER).state_dict().items()}
    save_file(weights, path, metadata={"config": json.dumps(config)})


def write_vae(path: Path) -> None:
    save_file(VideoAutoencoder(VAE).state_dict(), path, metadata={"config": json.dumps({"norm_num_groups": 4})})


def write_tokenizer(path: Path) -> int:
    """A byte-level tokenizer with both encoders' special tokens; gives its size."""
    special = list(dict.fromkeys((*LLAMA3.special, *CLIP.special)))
    tokenizer = Tokenizer(BPE())
    units = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [units, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([template.text for template in TEMPLATES.values()], trainer)
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()


def write_encoders(folder: Path) -> None:
    rows = write_tokenizer(folder / "tiny_llama.tokenizer.json")
    write_tokenizer(folder / "tiny_clip.tokenizer.json")
    llm = LlamaConfig(vocab_size=rows, hidden_size=32, ffn_size=48, num_layers=4, num_heads=4, num_kv_heads=2)
    # a file holds all layers; the encoder drops the last two
    whole = build_llama(llm, dtype=torch.float32, device="cpu", skip_layers=1).model.state_dict()
    whole |= {key.replace("layers.2", "layers.3"): value.clone() for key, value in whole.items() if "layers.2" in key}
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    save_file(whole, folder / "tiny_llama.safetensors", metadata={"config": json.dumps(config)})
    clip = ClipTextConfig(vocab_size=rows, hidden_size=24, ffn_size=48, num_layers=2, num_heads=4)
    weights = build_clip(clip, dtype=torch.float32, device="cpu").model.state_dict()
    named = {f"text_model.{key}": value for key, value in weights.items() if "position_ids" not in key}
    save_file(named, folder / "tiny_clip.safetensors", metadata={"config": json.dumps({"num_attention_heads": 4})})


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in ("diffusion_models", "vae", "text_encoders"):
        (root / kind).mkdir()
    torch.manual_seed(0)
    write_transformer(root / "diffusion_models" / "tiny.safetensors")
    write_vae(root / "vae" / "tiny.safetensors")
    write_encoders(root / "text_encoders")
    return root


@pytest.fixture
def models(model_files: Path, tmp_path: Path) -> Path:
    """The tiny models as the model folder of this process."""
    headless.use_folders(headless.Folders(models=(model_files,), output=tmp_path / "output", input=tmp_path))
    yield model_files
    headless.use_folders(headless.Folders())


NODE_BY_ID = {node.define_schema().node_id: node for node in NODES}


def run(node_id: str, **inputs: object) -> tuple:
    """A node's results, its widgets at their defaults where nothing is given."""
    node = NODE_BY_ID[node_id]
    defaults = {
        socket.id: socket.options["default"] for socket in node.define_schema().inputs if "default" in socket.options
    }
    return node.execute(**{**defaults, **inputs}).result


@pytest.fixture
def model(models: Path):
    return run("HYVLoadModel", model="tiny.safetensors")[0]


@pytest.fixture
def vae(models: Path):
    return run("HYVLoadVAE", vae="tiny.safetensors")[0]


@pytest.fixture
def text_encoders(models: Path):
    return run("HYVLoadTextEncoders", llm="tiny_llama.safetensors", clip="tiny_clip.safetensors")[0]


@pytest.fixture
def positive(text_encoders):
    return run("HYVTextEncode", text_encoders=text_encoders, prompt="a red circle moves left")[0]


@pytest.fixture
def latent():
    return run("HYVEmptyLatent", width=32, height=48, length=9)[0]


@pytest.fixture
def run_node():
    return run
