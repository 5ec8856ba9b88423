from dataclasses import replace

import pytest
import torch
from hyvideo_nodes.hyvideo_core.text_encoders.llm import build_llama
from hyvideo_nodes.hyvideo_core.training.readers import (
    EMBEDDED_CLIP,
    EMBEDDED_LLAMA,
    READING_MIX,
    LanguageReader,
    PooledReader,
    attribute_targets,
    blurred,
    draw_readings,
    last_states,
    mean_states,
    pad_ids,
    round_to,
)
from hyvideo_nodes.hyvideo_core.training.scenes import CAMERAS, MOTIONS, sample_scene

SCENES = [sample_scene(seed, READING_MIX) for seed in range(40)]


def test_targets_tell_scenes_apart_by_what_they_show():
    targets = attribute_targets(SCENES)
    assert targets.shape == (40, 8)
    for scene, row in zip(SCENES, targets, strict=True):
        recoloured = replace(scene, things=(replace(scene.things[0], colour="green"), *scene.things[1:]))
        changed = attribute_targets([recoloured])[0] != row
        assert changed.tolist() == [scene.things[0].colour != "green"] + [False] * 7


def test_pooled_codes_depend_on_colours_and_background_alone():
    reader = PooledReader(EMBEDDED_CLIP)
    targets = attribute_targets(SCENES)
    codes = reader.target_vectors(targets)
    for unseen in (1, 2, 4, 5, 7):
        other = targets.clone()
        other[:, unseen] = 0
        assert torch.equal(reader.target_vectors(other), codes)
    for seen in (0, 3, 6):
        other = targets.clone()
        other[:, seen] = (other[:, seen] + 1) % 5
        assert not torch.isclose(reader.target_vectors(other), codes).all(dim=1).any()


def test_the_reader_trains_the_states_that_prompts_use():
    reader = LanguageReader(EMBEDDED_LLAMA)
    encoder = build_llama(EMBEDDED_LLAMA, dtype=torch.float32, device="cpu")
    weights = reader.model.state_dict()
    encoder.model.load_state_dict({name: weights[name] for name in encoder.model.state_dict()})
    ids = torch.randint(0, 600, (2, 9))
    assert torch.allclose(reader.states(ids)[0], encoder(ids), atol=1e-5)


def test_the_state_of_the_last_real_token_is_read():
    ids, lengths = pad_ids([(5, 6, 7), (8,)], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert last_states(ids[..., None].float(), lengths).flatten().tolist() == [7.0, 8.0]


def test_the_mean_is_over_the_prompt_alone():
    states = torch.tensor([[9.0, 1.0, 3.0, 99.0], [9.0, 5.0, 99.0, 99.0]])[..., None]
    assert mean_states(states, crop=1, lengths=torch.tensor([3, 2])).flatten().tolist() == [2.0, 5.0]


def test_blur_is_half_as_large_as_what_it_blurs():
    states = 3.0 * torch.ones(500, 96)
    blurs = [blurred(states, torch.Generator().manual_seed(seed)) - states for seed in (0, 0, 1)]
    assert 1.4 < float(blurs[0].std()) < 1.6
    assert torch.equal(blurs[0], blurs[1])
    assert not torch.equal(blurs[0], blurs[2])


def test_readings_are_the_same_from_the_same_seed():
    first, again = (draw_readings(10, torch.Generator().manual_seed(4)) for _ in range(2))
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])


def test_captions_of_still_pictures_name_no_motion_and_have_none_to_read():
    texts, targets = draw_readings(400, torch.Generator().manual_seed(4))
    is_still = targets[:, 2] == len(MOTIONS)
    assert 0.1 < float(is_still.float().mean()) < 0.2
    assert (targets[is_still][:, [5, 7]] == torch.tensor([len(MOTIONS), CAMERAS.index("static")])).all()
    moving = ("moves", "grow", "shrink", "still", "slides", "camera")
    for text, still in zip(texts, is_still.tolist(), strict=True):
        assert not (still and any(word in text for word in moving)), text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_keeps_what_a_file_keeps(dtype):
    module = round_to(torch.nn.Linear(7, 7), dtype)
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, module.weight.to(dtype).float())
