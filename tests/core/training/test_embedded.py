"""The whole chain in miniature: every stage, the files, and the same loaders that read the 13B model."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.loading import (
    build_clip_encoder,
    build_llama_encoder,
    build_transformer,
    build_vae,
    detect_clip,
    detect_llama,
    detect_transformer,
    detect_vae,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.text_encoders.conditioning import encode_prompt
from hyvideo_nodes.hyvideo_core.text_encoders.templates import VIDEO_TEMPLATE
from hyvideo_nodes.hyvideo_core.text_encoders.tokenizers import CLIP, LLAMA3, find_tokenizer
from hyvideo_nodes.hyvideo_core.training.autoencoder import EMBEDDED_VAE
from hyvideo_nodes.hyvideo_core.training.clips import ClipSet
from hyvideo_nodes.hyvideo_core.training.embedded import STAGES, train_embedded
from hyvideo_nodes.hyvideo_core.training.export import EmbeddedFiles
from hyvideo_nodes.hyvideo_core.training.plan import QUICK
from hyvideo_nodes.hyvideo_core.training.shipped import EXAMS, ShippedModel, quality_table, reconstruction_psnr
from hyvideo_nodes.hyvideo_core.training.transformer import EMBEDDED_TRANSFORMER
from hyvideo_nodes.hyvideo_core.training.workshop import Workshop

PHASES = tuple(phase.name for phase in QUICK.phases)
PROMPT = "a red circle moves left on a black background"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[EmbeddedFiles, Workshop]:
    """What the quick plan makes."""
    folder = tmp_path_factory.mktemp("embedded")
    train_embedded(folder / "out", folder / "run", plan=QUICK)
    return EmbeddedFiles(folder / "out"), Workshop(folder / "run", QUICK)


def test_the_transformer_loads_strictly_and_is_the_trained_one(made):
    files, workshop = made
    detected = detect_transformer(open_checkpoint(files.transformer))
    assert detected.config == EMBEDDED_TRANSFORMER
    trained = workshop.distilled().state_dict()
    for name, weight in build_transformer(detected, dtype=torch.float32).state_dict().items():
        assert torch.equal(weight, trained[name].bfloat16().float()), name


def test_the_autoencoder_loads_strictly_and_is_the_trained_one(made):
    files, workshop = made
    detected = detect_vae(open_checkpoint(files.vae))
    assert detected.config == EMBEDDED_VAE
    trained = workshop.autoencoder().state_dict()
    for name, weight in build_vae(detected, dtype=torch.float32).state_dict().items():
        assert torch.equal(weight, trained[name].half().float()), name


def test_prompts_become_the_conditions_that_were_trained_on(made):
    files, workshop = made
    llama, clip = open_checkpoint(files.llama), open_checkpoint(files.clip)
    llama_config, clip_config = detect_llama(llama), detect_clip(clip)
    conditioning = encode_prompt(
        PROMPT,
        VIDEO_TEMPLATE,
        llm=build_llama_encoder(llama, llama_config, dtype=torch.float32),
        llm_tokenizer=find_tokenizer(LLAMA3, num_rows=llama_config.vocab_size, weights=files.llama),
        clip=build_clip_encoder(clip, clip_config, dtype=torch.float32),
        clip_tokenizer=find_tokenizer(CLIP, num_rows=clip_config.vocab_size, weights=files.clip),
    )
    trained = workshop.text_reader().read([PROMPT])[0]
    assert conditioning.pooled is not None
    assert torch.allclose(conditioning.states, trained.states, atol=1e-5)
    assert torch.allclose(conditioning.pooled, trained.pooled, atol=1e-5)


def test_preview_factors_travel_with_the_transformer(made):
    stored = json.loads(open_checkpoint(made[0].transformer).metadata["latent_rgb"])
    assert torch.tensor(stored["factors"]).shape == (16, 3)
    assert torch.tensor(stored["bias"]).shape == (3,)


def test_all_files_stay_under_twenty_megabytes(made):
    sizes = [path.stat().st_size for path in made[0].root.rglob("*") if path.is_file()]
    assert len(sizes) == 6
    assert sum(sizes) < 20e6


def test_every_stage_leaves_its_log_and_pictures(made):
    folder = made[1].folder
    for stage in ("clip", "llama", "decoder", "autoencoder", *PHASES, "distilled"):
        assert (folder / f"{stage}.jsonl").stat().st_size > 0
        assert (folder / f"{stage}.pt").exists()
    for stage in ("decoder", "autoencoder", *PHASES, "distilled"):
        assert (folder / f"{stage}.png").stat().st_size > 1000


def test_a_batch_of_captions_has_one_length_and_the_data_set_survives_its_file(made, tmp_path: Path):
    kind = QUICK.kinds[0]
    training, held_out = (made[1].clips(kind, held_out=side) for side in (False, True))
    assert sum(len(bucket.latents) for bucket in training.buckets) == kind.count
    assert training.empty.states.shape[1] == 1
    held_out.save(tmp_path / "clips.safetensors")
    again = ClipSet.load(tmp_path / "clips.safetensors")
    first, second = (data.sample(5, torch.Generator().manual_seed(3)) for data in (held_out, again))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1].states, second[1].states)


def test_the_judge_scores_the_files(made, tmp_path):
    model = ShippedModel.load(made[0])
    table = quality_table(model, 1, steps=2, sheet=tmp_path / "sheet.png")
    assert set(table) == {exam.name for exam in EXAMS}
    assert all(0.0 <= share <= 1.0 for scores in table.values() for share in scores.values())
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert 0 < reconstruction_psnr(model, 2) < 30


def test_single_stages_write_no_files_that_ship(tmp_path):
    plan = dataclasses.replace(QUICK, codec_clips=4)
    train_embedded(tmp_path / "out", tmp_path / "run", plan=plan, stages=["codec"])
    assert "codec" in STAGES
    assert (tmp_path / "run" / "codec.safetensors").exists()
    assert not (tmp_path / "out").exists()
