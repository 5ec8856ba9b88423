"""The layouts of LoRA files in words, by what their names have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from os.path import commonprefix

from ..loading.key_maps import COMFY, DIFFUSERS, OFFICIAL
from .keys import GroupedNames, Place
from .targets import INDEXED, LETTERED

# table, whether underscores stand for dots, and how the prefix begins; the first that fits is it
_WORDS: tuple[tuple[str, bool, str, str], ...] = (
    (OFFICIAL.name, True, "Hunyuan_video", "names of Tencent's image-to-video trainer"),
    (OFFICIAL.name, True, "", "kohya names (musubi-tuner)"),
    (OFFICIAL.name, False, "diffusion_model", "official names behind diffusion_model. (PEFT)"),
    (OFFICIAL.name, False, "transformer", "official names behind transformer. (PEFT, diffusion-pipe)"),
    (OFFICIAL.name, False, "", "official names (PEFT)"),
    (COMFY.name, True, "", "ComfyUI names, kohya style"),
    (COMFY.name, False, "", "ComfyUI names"),
    (DIFFUSERS.name, True, "", "diffusers names, kohya style (OneTrainer)"),
    (DIFFUSERS.name, False, "", "diffusers names (finetrainers)"),
    (INDEXED.name, False, "", "OneTrainer's omi names"),
    (INDEXED.name, True, "", "OneTrainer's omi names, kohya style"),
    (LETTERED.name, True, "", "kohya names with separate q, k and v"),
    (LETTERED.name, False, "", "official names with separate q, k and v"),
)


UNKNOWN = "names that are not known"


def style_words(groups: GroupedNames) -> str:
    """How a file spells names of layers that no model of ours has."""
    bases = list(groups.bases)
    if not bases:
        return "names of text encoders"
    is_kohya = sum("." not in base for base in bases) > len(bases) / 2
    downs = [parts["down"] for parts in groups.bases.values() if "down" in parts]
    pairs = (
        ", lora_A and lora_B (PEFT)" if any(".lora_A" in name for name in downs) else ", lora_down and lora_up (kohya)"
    )
    prefix = commonprefix(bases)  # noqa: RUF071 (letter by letter is what is wanted)
    start = f" behind {prefix[:40]}" if len(prefix) > 1 else ""
    return f"names with {'underscores' if is_kohya else 'dots'}{start}{pairs if downs else ''}"


def dialect_words(places: Iterable[list[Place]]) -> str:
    """The layout that most entries of a file are written in; names that several layouts share count for each."""
    votes: Counter[tuple[str, str, bool]] = Counter()
    for found in places:
        votes.update({(place.table, place.prefix, place.is_kohya) for place in found})
    if not votes:
        return UNKNOWN
    # where two layouts explain as much, the one that stands first in the table is plainer
    order = [table for table, *_ in _WORDS]
    table, prefix, is_kohya = max(votes, key=lambda vote: (votes[vote], -order.index(vote[0])))
    return next(
        words
        for name, kohya, start, words in _WORDS
        if name == table and kohya == is_kohya and prefix.removeprefix("base_model.model.").startswith(start)
    )
