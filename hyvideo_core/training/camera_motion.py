"""How the camera moves in a video, read from the faint pattern of its background, without knowing any model.

Every candidate, a pan or a zoom of some amount, says where the background of one frame is to be found in a later
frame. The candidate under which the two look most alike, over many pairs of frames, is the camera's movement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SPANS = 2  # a pair is half a clip apart: the longest over which no pan moves the pattern by half its period
BLUR = 6 / 64  # of the frame: less than the pattern's structure, more than the grain of a decoder
HALO = 6 / 64  # of the frame, across: what a decoder blends and rings around an object is no background
MAX_PAN, MAX_ZOOM = 0.46, 2.2  # over the whole clip
MIN_PAN, MIN_ZOOM = 0.1, 1.2  # less is a resting camera
STEPS = 16  # candidates on each side of a resting camera
MIN_GAIN = 0.08  # of likeness over the resting camera: less is noise on a background without a pattern
FLAT = 4e-5  # variance of brightness, 0..1, that tells nothing


@dataclass(frozen=True, slots=True)
class CameraMotion:
    """What happens to the picture over the clip: shift to the right, share of the shorter side, and magnification."""

    shift: float = 0.0
    zoom: float = 1.0

    @property
    def name(self) -> str:
        """The movement in the words of the scenes; the scene moves right where the camera pans left."""
        if self.shift:
            return "pans left" if self.shift > 0 else "pans right"
        if self.zoom == 1.0:
            return "static"
        return "zooms in" if self.zoom > 1 else "zooms out"


def find_camera(video: Tensor, is_object: Tensor) -> CameraMotion:
    """The camera's movement from the background's.

    Args:
        video: (3, F, H, W) in 0..1.
        is_object: (F, H, W), pixels that are not background.
    """
    frames, side = video.shape[1], min(video.shape[2:])
    gap = max(1, round((frames - 1) / SPANS))
    if frames <= gap:
        return CameraMotion()
    ground, weight = _smooth_background(video, is_object, side)
    share = gap / (frames - 1)
    likeness = {camera: _likeness(ground, weight, gap, share, camera) for camera in _candidates()}
    best = max(likeness, key=lambda camera: likeness[camera])
    is_small = abs(best.shift) < MIN_PAN and abs(math.log(best.zoom)) < math.log(MIN_ZOOM)
    if is_small or likeness[best] - likeness[CameraMotion()] < MIN_GAIN:
        return CameraMotion()
    return best


def _candidates() -> list[CameraMotion]:
    steps = [i / STEPS for i in range(-STEPS, STEPS + 1) if i]
    pans = [CameraMotion(shift=MAX_PAN * step) for step in steps]
    return [CameraMotion(), *pans, *(CameraMotion(zoom=MAX_ZOOM**step) for step in steps)]


def _smooth_background(video: Tensor, is_object: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Brightness (F, 1, h, w) around 0, blurred over background only, and the share of background, at half size."""
    halo, blur = 2 * round(HALO * side / 2) + 1, 2 * round(BLUR * side / 2)
    weight = 1 - F.max_pool2d(is_object[:, None].float(), halo, stride=1, padding=halo // 2)
    brightness = video.mean(dim=0)[:, None]
    # around 0, or what stands behind an object would differ from the ground more than the pattern does
    brightness = (brightness - (brightness * weight).sum() / weight.sum().clamp_min(1.0)) * weight
    cover = F.avg_pool2d(weight, blur, stride=2, padding=blur // 2 - 1, count_include_pad=False)
    total = F.avg_pool2d(brightness, blur, stride=2, padding=blur // 2 - 1, count_include_pad=False)
    return total / cover.clamp_min(1e-3), cover


def _likeness(ground: Tensor, weight: Tensor, gap: int, share: float, camera: CameraMotion) -> float:
    """Correlation of later frames with earlier ones moved as a candidate says, over what both show as background."""
    height, width = ground.shape[2:]
    shift, zoom = 2 * camera.shift * share * min(height, width) / width, camera.zoom**share
    theta = torch.tensor([[[1 / zoom, 0.0, -shift / zoom], [0.0, 1 / zoom, 0.0]]])
    grid = F.affine_grid(theta, [1, 1, height, width], align_corners=False).expand(len(ground) - gap, -1, -1, -1)
    moved = F.grid_sample(ground[:-gap], grid, padding_mode="border", align_corners=False)
    both = F.grid_sample(weight[:-gap], grid, align_corners=False) * weight[gap:]
    size = both.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
    earlier, later = (x - (both * x).sum(dim=(1, 2, 3), keepdim=True) / size for x in (moved, ground[gap:]))
    total = float(both.sum().clamp_min(1e-3))
    variances = [float((both * x.square()).sum()) / total + FLAT for x in (earlier, later)]
    return float((both * earlier * later).sum()) / total / math.sqrt(variances[0] * variances[1])
