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
from .autoencoder import EMBEDDED_VAE, PICTURE_MIX, DecoderTask, EncoderTask, held_out_clips, new_autoencoder
from .clips import ClipPlan, ClipSet, TextReader, make_clips
from .codec import PatchCodec
from .drawing import draw
from .loops import Evaluate, LossAt, ModuleT, Schedule, train
from .plan import Plan
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
from .transformer import EMBEDDED_TRANSFORMER, DistillationTask, FlowTask, new_transformer
from .vocabulary import learn_clip_tokenizer, learn_llm_tokenizer


@dataclass(frozen=True, slots=True)
class Workshop:
    """A run folder, the plan, and what the finished stages left there."""

    folder: Path
    plan: Plan

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
            _, texts = draw_readings(self.plan.corpus, torch.Generator().manual_seed(0))
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

    def clips(self) -> tuple[ClipSet, ClipSet]:
        """(training, held-out) data sets, made at the first call."""
        sets = []
        for name, count, held_out in (
            ("clips_train", self.plan.clips, False),
            ("clips_held", self.plan.held_out_clips, True),
        ):
            path = self.folder / f"{name}.safetensors"
            if not path.exists():
                plan = ClipPlan(count=count, mix=self.plan.mix, held_out=held_out)
                make_clips(plan, self.codec(), self.text_reader()).save(path)
            sets.append(ClipSet.load(path))
        return sets[0], sets[1]

    def decoder(self) -> VideoAutoencoder:
        """The autoencoder with its decoder trained."""
        task, clips = DecoderTask(self.codec()), held_out_clips(self.plan.shown // 2)
        return self._train(
            new_autoencoder(), self.plan.decoder, task.loss, "decoder", lambda vae: task.evaluate(vae, clips)
        )

    def encoder(self) -> VideoAutoencoder:
        """The whole autoencoder: the trained decoder, and an encoder that leads into its latents."""
        task, clips = EncoderTask(self.codec()), held_out_clips(self.plan.shown // 2)
        vae = self.decoder().requires_grad_(True)
        return self._train(vae, self.plan.encoder, task.loss, "encoder", lambda vae: task.evaluate(vae, clips))

    def autoencoder(self) -> VideoAutoencoder:
        """Both trained halves in one: either may have been trained further since the other was."""
        whole, trained = self.encoder(), self.decoder()
        whole.decoder.load_state_dict(trained.decoder.state_dict())
        whole.post_quant_conv.load_state_dict(trained.post_quant_conv.state_dict())
        return whole

    def transformer(self) -> Transformer:
        """The plain model, unguided."""
        training, held_out = self.clips()
        task = FlowTask(clips=training, batch=self.plan.batch)
        judge = FlowTask(clips=held_out, batch=self.plan.batch)
        model = new_transformer(EMBEDDED_TRANSFORMER, training.text_deviation())
        return self._train(model, self.plan.transformer, task.loss, "transformer", judge.evaluate)

    def distilled(self) -> Transformer:
        """The model that ships: guidance in one forward."""
        training, _ = self.clips()
        teacher = self.transformer()
        task = DistillationTask(flow=FlowTask(clips=training, batch=self.plan.batch), teacher=teacher)
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
        return train(module, schedule, loss_at, folder=self.folder, name=name, evaluate=evaluate)
