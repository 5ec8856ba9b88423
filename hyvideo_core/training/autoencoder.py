"""The autoencoder in training: the decoder alone against the linear codec's latents, then both halves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import VaeConfig
from ..vae.autoencoder import VideoAutoencoder
from ..vae.layers import ResnetBlock
from .codec import PatchCodec
from .drawing import background_rgb, draw
from .objectives import latent_likelihood, psnr, reconstruction_loss
from .scenes import Scene, SceneMix, sample_scene

EMBEDDED_VAE = VaeConfig(block_channels=(16, 32, 48, 48), layers_per_block=1, norm_groups=8)
PICTURE_MIX = SceneMix(two_objects=0.3, moving_camera=0.3)
OBJECT_WEIGHT = 5.0
MAX_LATENT_NOISE = 0.2
MAX_OVERSHOOT = 0.3  # guidance makes latents larger than clips do


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSize:
    """A kind of training batch, and how often it is drawn."""

    batch: int
    frames: int
    side: int
    share: float


SIZES = (
    ClipSize(batch=6, frames=1, side=64, share=0.25),
    ClipSize(batch=3, frames=9, side=32, share=0.35),
    ClipSize(batch=1, frames=17, side=64, share=0.4),
)
FRAME_SIDE = 64


@dataclass(frozen=True, slots=True)
class Pictures:
    """Clips (B, 3, F, H, W) in -1..1, and a weight per pixel (B, 1, F, H, W)."""

    video: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Pictures:
        """The same on another device."""
        return Pictures(self.video.to(device), self.weight.to(device))


def draw_pictures(size: ClipSize, generator: torch.Generator) -> Pictures:
    """Fresh clips of the training side of the split, cropped at random places to the size."""
    seeds = torch.randint(2**40, (size.batch,), generator=generator).tolist()
    crops = [_crop(sample_scene(seed, PICTURE_MIX), size, generator) for seed in seeds]
    return Pictures(torch.stack([video for video, _ in crops]), torch.stack([weight for _, weight in crops]))


def _crop(scene: Scene, size: ClipSize, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    video = draw(scene, frames=17, height=FRAME_SIDE, width=FRAME_SIDE)
    for axis, length in ((1, size.frames), (2, size.side), (3, size.side)):
        room = video.shape[axis] - length
        start = int(torch.randint(room + 1, (1,), generator=generator))
        video = video.narrow(axis, start, length)
    return video, object_weight(video, scene)


def object_weight(video: Tensor, scene: Scene) -> Tensor:
    """(1, F, H, W): 1 on the background, OBJECT_WEIGHT where a pixel is plainly something else."""
    background = torch.tensor(background_rgb(scene.background)).view(3, 1, 1, 1) * 2 - 1
    is_object = (video - background).abs().amax(dim=0, keepdim=True) > 0.3
    return 1.0 + (OBJECT_WEIGHT - 1.0) * is_object.float()


def choose_size(generator: torch.Generator) -> ClipSize:
    """One of SIZES by their shares."""
    shares = torch.tensor([size.share for size in SIZES])
    return SIZES[int(torch.multinomial(shares, 1, generator=generator))]


def new_autoencoder(seed: int = 0) -> VideoAutoencoder:
    """Untrained, with quiet residual branches and raw latents that are unit-sized after the scaling factor."""
    torch.manual_seed(seed)
    vae = VideoAutoencoder(EMBEDDED_VAE)
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, std=(module.weight[0].numel()) ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, ResnetBlock):
            module.conv2.conv.weight.data.mul_(0.1)
    scale, channels = EMBEDDED_VAE.scaling_factor, EMBEDDED_VAE.latent_channels
    _set_pointwise(vae.post_quant_conv, torch.full((channels,), scale))
    _set_pointwise(vae.quant_conv, torch.cat((torch.full((channels,), 1 / scale), torch.ones(channels))))
    return vae


def _set_pointwise(conv: nn.Conv3d, factors: Tensor) -> None:
    """Makes a 1x1x1 convolution scale each channel and nothing else."""
    conv.weight.data.copy_(torch.diag(factors)[:, :, None, None, None])


def as_sampled(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Latents (B, C, T, H, W) with a little noise and too much contrast, as a guided sampler leaves them."""
    amount, gain = torch.rand(2, len(latents), 1, 1, 1, 1, generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return latents * (1.0 + gain * MAX_OVERSHOOT) + amount * MAX_LATENT_NOISE * noise


@dataclass(frozen=True, slots=True)
class DecoderTask:
    """Latents, as a guided sampler leaves them, to pixels."""

    codec: PatchCodec

    def loss(self, vae: VideoAutoencoder, generator: torch.Generator) -> Tensor:
        """Loss on fresh clips."""
        device, pictures = _device_of(vae), draw_pictures(choose_size(generator), generator)
        latents = as_sampled(self.codec.encode(pictures.video), generator)
        return decoding_loss(vae, latents.to(device), pictures.to(device))

    def evaluate(self, vae: VideoAutoencoder, clips: Tensor) -> dict[str, float]:
        """PSNR of clips (B, 3, F, H, W) from the codec's latents."""
        latents = self.codec.encode(clips).to(_device_of(vae))
        return {"psnr": psnr(vae.decode(latents / EMBEDDED_VAE.scaling_factor).float().cpu(), clips)}


@dataclass(frozen=True, slots=True)
class AutoencoderTask:
    """There and back: pixels to the codec's latents, and half of the time from there, else as sampled, to pixels.

    The encoder may leave the codec's latents by as little as helps the decoder, which linear components do not know.
    """

    codec: PatchCodec

    def loss(self, vae: VideoAutoencoder, generator: torch.Generator) -> Tensor:
        """Loss on fresh clips: of the latents, in scaled units, and of the pixels."""
        device = _device_of(vae)
        pictures = draw_pictures(choose_size(generator), generator)
        target = self.codec.encode(pictures.video)
        sampled = as_sampled(target, generator).to(device)
        pictures, target = pictures.to(device), target.to(device)
        factor = torch.ones(2, EMBEDDED_VAE.latent_channels, 1, 1, 1, device=device)
        factor[0] = EMBEDDED_VAE.scaling_factor
        with torch.autocast(device.type, torch.bfloat16):
            moments = vae.encode(pictures.video).float() * factor.flatten(0, 1)
        is_own = float(torch.rand(1, generator=generator)) < 0.5
        latents = moments.chunk(2, dim=1)[0] if is_own else sampled
        return latent_likelihood(moments, target) + decoding_loss(vae, latents, pictures)

    def evaluate(self, vae: VideoAutoencoder, clips: Tensor) -> dict[str, float]:
        """PSNR of clips there and back through both halves, and the mean error of the latents."""
        mean = vae.encode(clips.to(_device_of(vae))).chunk(2, dim=1)[0]
        error = (mean.cpu() * EMBEDDED_VAE.scaling_factor - self.codec.encode(clips)).square().mean()
        return {"latent_error": float(error), "psnr": psnr(vae.decode(mean).float().cpu(), clips)}


def decoding_loss(vae: VideoAutoencoder, latents: Tensor, pictures: Pictures) -> Tensor:
    """Loss of the pictures decoded from scaled latents (B, C, T, H, W)."""
    with torch.autocast(latents.device.type, torch.bfloat16):
        decoded = vae.decode(latents / EMBEDDED_VAE.scaling_factor)
    return reconstruction_loss(decoded, pictures.video, pictures.weight)


def _device_of(vae: VideoAutoencoder) -> torch.device:
    return next(vae.parameters()).device


def held_out_clips(count: int) -> Tensor:
    """(B, 3, 17, 64, 64) of the side of the split that is never trained on."""
    scenes = (sample_scene(seed, PICTURE_MIX, held_out=True) for seed in range(count))
    return torch.stack([draw(scene, frames=17, height=FRAME_SIDE, width=FRAME_SIDE) for scene in scenes])
