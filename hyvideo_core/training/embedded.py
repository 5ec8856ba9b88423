"""Makes the embedded model from nothing: text encoders, autoencoder, transformer, and the files that ship.

Every stage keeps its checkpoint and log in the run folder and is passed over once it is finished, so that the same
call resumes a run that was stopped. Stages that do not need each other may run in two processes at once:
`--stages codec decoder autoencoder` beside `--stages codec readers clips pictures short_clips full_clips all_clips`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..model.transformer import Transformer
from ..vae.autoencoder import VideoAutoencoder
from .autoencoder import held_out_clips
from .codec import preview_factors
from .export import EmbeddedFiles, export_clip, export_llama, export_transformer, export_vae
from .inspection import Sampler, judged_scenes, measure, save_contact_sheet
from .plan import QUICK, STANDARD, Plan
from .workshop import CPU, Workshop

logger = logging.getLogger(__name__)

PLAIN_GUIDANCE = 3.5  # of two forwards, for a model that is not distilled yet


def sample_sheet(workshop: Workshop, name: str, model: Transformer, sampler: Sampler) -> dict[str, float]:
    """Scores of a model on held-out prompts, decoded by the linear codec, and a contact sheet of what it drew."""
    codec, reader = workshop.codec(), workshop.text_reader()

    def make(caption: str, seed: int) -> Tensor:
        return codec.decode(sampler.sample(model, reader.read([caption])[0], seed))[0]

    scores, videos = measure(judged_scenes(workshop.plan.shown, held_out=True), make)
    save_contact_sheet(videos, workshop.folder / f"{name}.png")
    logger.info("%s: %s", name, ", ".join(f"{key} {value:.2f}" for key, value in scores.items()))
    return scores


def decoder_sheet(workshop: Workshop, name: str, vae: VideoAutoencoder) -> None:
    """A contact sheet of held-out clips from the codec's latents."""
    clips = held_out_clips(workshop.plan.shown)
    with torch.no_grad():
        videos = [vae.decode(workshop.codec().encode(clip[None]) / vae.config.scaling_factor)[0] for clip in clips]
    save_contact_sheet(
        [(f"clip {index}", video) for index, video in enumerate(videos)], workshop.folder / f"{name}.png"
    )


def _make_codec(workshop: Workshop) -> None:
    workshop.codec()


def _make_readers(workshop: Workshop) -> None:
    workshop.readers()


def _make_clips(workshop: Workshop) -> None:
    for kind in workshop.plan.kinds:
        for held_out in (False, True):
            workshop.clips(kind, held_out=held_out)


def _make_decoder(workshop: Workshop) -> None:
    decoder_sheet(workshop, "decoder", workshop.decoder())


def _make_autoencoder(workshop: Workshop) -> None:
    decoder_sheet(workshop, "autoencoder", workshop.autoencoder())


def _make_phase(name: str) -> Callable[[Workshop], None]:
    def make(workshop: Workshop) -> None:
        model = workshop.transformer(name)
        empty = workshop.text_reader().read([""])[0]
        sample_sheet(workshop, name, model, Sampler(guidance=PLAIN_GUIDANCE, plain=empty))

    return make


def _make_distilled(workshop: Workshop) -> None:
    sample_sheet(workshop, "distilled", workshop.distilled(), Sampler())


STAGES: dict[str, Callable[[Workshop], None]] = {
    "codec": _make_codec,
    "readers": _make_readers,
    "clips": _make_clips,
    "decoder": _make_decoder,
    "autoencoder": _make_autoencoder,
    **{phase.name: _make_phase(phase.name) for phase in STANDARD.phases},
    "distilled": _make_distilled,
}
"""What is made, in this order."""


def export(workshop: Workshop, out_dir: Path) -> None:
    """Writes all files that ship, from what the finished stages left."""
    files = EmbeddedFiles(out_dir)
    codec, clips = workshop.codec(), held_out_clips(workshop.plan.shown * 4)
    export_transformer(workshop.distilled(), files.transformer, preview_factors(codec.encode(clips), clips))
    export_vae(workshop.autoencoder(), files.vae)
    language, pooled = workshop.readers()
    export_llama(language, workshop.llama_config(), files.llama)
    export_clip(pooled, workshop.clip_config(), files.clip)
    for tokenizer, weights in zip(workshop.tokenizers(), (files.llama, files.clip), strict=True):
        tokenizer.backend.save(str(files.tokenizer_of(weights)))


def train_embedded(
    out_dir: Path,
    run_dir: Path,
    *,
    plan: Plan = STANDARD,
    stages: Sequence[str] = tuple(STAGES),
    device: torch.device = CPU,
) -> None:
    """Runs the stages that are not finished yet; with all of them, writes the files that ship.

    Args:
        out_dir: becomes a folder of model folders (diffusion_models, vae, text_encoders).
        run_dir: checkpoints, logs and contact sheets.
        stages: names out of STAGES; others that these need are made on the way.
        device: what the networks are trained on.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(run_dir, plan, device)
    for name in STAGES:
        if name in stages:
            logger.info("stage %s", name)
            STAGES[name](workshop)
    if set(stages) == set(STAGES):
        export(workshop, out_dir)
        logger.info("wrote %s", out_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `train-embedded`."""
    parser = argparse.ArgumentParser(prog="train-embedded", description="Train the embedded model from nothing.")
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=Path, default=root / "embedded", help="where the model's files go")
    parser.add_argument("--run", type=Path, default=root / "runs" / "embedded", help="checkpoints, logs and pictures")
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=tuple(STAGES), help="run only these")
    parser.add_argument("--quick", action="store_true", help="a trial with a few steps of everything")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more than the idle cores slows it down")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    train_embedded(
        options.out,
        options.run,
        plan=QUICK if options.quick else STANDARD,
        stages=options.stages,
        device=torch.device(options.device),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
