"""A run folder that makes and keeps everything the embedded model needs; what is finished is only loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..config import ClipTextConfig, LlamaConfig
from ..model.transformer import Transformer
from ..text_encoders.llm import build_llama
from ..text_encoders.templates import IMAGE_TEMPLATE, VIDEO_TEMPLATE
from ..text_encoders.tokenizers import CLIP, LLAMA3, PromptTokenizer, read_tokenizer
from ..vae.autoencoder import VideoAutoencoder
from .autoencoder import EMBEDDED_VAE, PICTURE_MIX, AutoencoderTask, DecoderTask, held_out_clips, new_autoencoder
from .clips import ClipKind, ClipSet, TextReader, make_clips
from .codec import PatchCodec
from .drawing import draw
from .loops import Evaluate, LossAt, ModuleT, Schedule, train
from .plan import Phase, Plan
from .readers import (
    EMBEDDED_CLIP,
    EMBEDDED_LLAMA,
    LanguageReader,
    LanguageTask,
    PooledReader,
    PooledTask,
    draw_readings,
    round_to,
)
from .scenes import sample_scene
from .transformer import EMBEDDED_TRANSFORMER, DistillationTask, FlowTask, Source, new_transformer
from .vocabulary import learn_clip_tokenizer, learn_llm_tokenizer

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Workshop:
    """A run folder, the plan, and what the finished stages left there; what a stage gives back lies on the CPU."""

    folder: Path
    plan: Plan
    device: torch.device = CPU

    def codec(self) -> PatchCodec:
        """The linear codec, fitted at the first call."""
        path = self.folder / "codec.safetensors"
        if not path.exists():
            scenes = (sample_scene(seed, PICTURE_MIX) for seed in range(self.plan.codec_clips))
            clips = torch.stack([draw(scene, frames=17, height=64, width=64) for scene in scenes])
            save_file(PatchCodec.fit(clips, EMBEDDED_VAE.latent_channels).state_dict(), path)
        return PatchCodec(**load_file(path))

    def tokenizers(self) -> tuple[PromptTokenizer, PromptTokenizer]:
        """Both tokenizers, (language model's, pooled encoder's), learned at the first call."""
        llm_path, clip_path = self.folder / "llama.tokenizer.json", self.folder / "clip.tokenizer.json"
        if not (llm_path.exists() and clip_path.exists()):
            texts, _ = draw_readings(self.plan.corpus, torch.Generator().manual_seed(0))
            templates = [template.apply("") for template in (VIDEO_TEMPLATE, IMAGE_TEMPLATE)]
            learn_llm_tokenizer([*texts, *templates * 50], EMBEDDED_LLAMA.vocab_size).save(str(llm_path))
            learn_clip_tokenizer(texts, EMBEDDED_CLIP.vocab_size).save(str(clip_path))
        return read_tokenizer(llm_path, LLAMA3), read_tokenizer(clip_path, CLIP)

    def readers(self) -> tuple[LanguageReader, PooledReader]:
        """Both text encoders with the values that their files will hold, trained where they are not yet."""
        llm_tokenizer, clip_tokenizer = self.tokenizers()
        torch.manual_seed(0)
        pooled, pooled_task = PooledReader(self.clip_config()), PooledTask(clip_tokenizer)
        pooled = self._train(pooled, self.plan.pooled, pooled_task.loss, "clip", pooled_task.evaluate)
        language, language_task = LanguageReader(self.llama_config()), LanguageTask(llm_tokenizer, VIDEO_TEMPLATE)
        language = self._train(language, self.plan.language, language_task.loss, "llama", language_task.evaluate)
        for reader in (language, pooled):
            round_to(reader, torch.bfloat16)
        return language, pooled

    def llama_config(self) -> LlamaConfig:
        """Sizes of the language model, with a row for each token that was learned."""
        return replace(EMBEDDED_LLAMA, vocab_size=self.tokenizers()[0].num_ids)

    def clip_config(self) -> ClipTextConfig:
        """Sizes of the pooled encoder, with a row for each token that was learned."""
        return replace(EMBEDDED_CLIP, vocab_size=self.tokenizers()[1].num_ids)

    def text_reader(self) -> TextReader:
        """The text encoders as a prompt meets them."""
        language, pooled = self.readers()
        llm_tokenizer, clip_tokenizer = self.tokenizers()
        encoder = build_llama(self.llama_config(), dtype=torch.float32, device="cpu")
        kept = encoder.model.state_dict()
        encoder.model.load_state_dict({name: language.model.state_dict()[name] for name in kept})
        return TextReader(llm=encoder, llm_tokenizer=llm_tokenizer, clip=pooled.encoder, clip_tokenizer=clip_tokenizer)

    def clips(self, kind: ClipKind, *, held_out: bool = False) -> ClipSet:
        """A data set of one size, made at the first call."""
        side = "held" if held_out else "train"
        path = self.folder / f"clips_{kind.name.replace(' ', '_')}_{side}.safetensors"
        if not path.exists():
            made = make_clips(kind, self.plan.mix, self.codec(), self.text_reader(), held_out=held_out)
            made.save(path)
        return ClipSet.load(path)

    def flow_task(self, phase: Phase, *, held_out: bool = False) -> FlowTask:
        """What a phase of the transformer learns, or is judged by."""
        kinds = [kind for kind in self.plan.kinds if kind.name in phase.shares]
        return FlowTask(
            sources=tuple(
                Source(
                    name=kind.name,
                    clips=self.clips(kind, held_out=held_out),
                    batch=kind.batch,
                    share=phase.shares[kind.name],
                )
                for kind in kinds
            )
        )

    def decoder(self) -> VideoAutoencoder:
        """The autoencoder with its decoder trained."""
        task, clips = DecoderTask(self.codec()), held_out_clips(self.plan.shown // 2)
        return self._train(
            new_autoencoder(), self.plan.decoder, task.loss, "decoder", lambda vae: task.evaluate(vae, clips)
        )

    def autoencoder(self) -> VideoAutoencoder:
        """The whole autoencoder: the trained decoder, and an encoder that leads into its latents."""
        task, clips = AutoencoderTask(self.codec()), held_out_clips(self.plan.shown // 2)
        vae = self.decoder().requires_grad_(True)
        return self._train(vae, self.plan.autoencoder, task.loss, "autoencoder", lambda vae: task.evaluate(vae, clips))

    def transformer(self, name: str) -> Transformer:
        """The plain model, unguided, at the end of a phase; the phases before it are its beginning."""
        names = [phase.name for phase in self.plan.phases]
        index = names.index(name)
        phase, task = self.plan.phases[index], self.flow_task(self.plan.phases[index])
        model = new_transformer(EMBEDDED_TRANSFORMER, task.sources[0].clips.text_deviation())
        if index > 0:
            model.load_state_dict(self.transformer(names[index - 1]).state_dict())
        judge = self.flow_task(phase, held_out=True)
        return self._train(model, phase.schedule, task.loss, name, judge.evaluate)

    def distilled(self) -> Transformer:
        """The model that ships: guidance in one forward."""
        last = self.plan.phases[-1]
        teacher = self.transformer(last.name)
        task = DistillationTask(flow=self.flow_task(last), teacher=teacher.to(self.device))
        student = new_transformer(EMBEDDED_TRANSFORMER, 1.0)
        student.load_state_dict(teacher.state_dict())
        return self._train(student, self.plan.distilled, task.loss, "distilled", None)

    def _train(
        self,
        module: ModuleT,
        schedule: Schedule,
        loss_at: LossAt[ModuleT],
        name: str,
        evaluate: Evaluate[ModuleT] | None,
    ) -> ModuleT:
        module = module.to(self.device)
        return train(module, schedule, loss_at, folder=self.folder, name=name, evaluate=evaluate).cpu()
