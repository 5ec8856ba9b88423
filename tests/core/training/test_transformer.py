import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.training.clips import Bucket, ClipSet
from hyvideo_nodes.hyvideo_core.training.objectives import TextCondition, velocity
from hyvideo_nodes.hyvideo_core.training.transformer import DistillationTask, FlowTask, new_transformer


@pytest.fixture
def clips() -> ClipSet:
    """Two buckets of random clips, with captions of 4 and of 6 tokens."""
    buckets = tuple(
        Bucket(torch.randn(count, 4, 2, 4, 4), torch.randn(count, length, 32), torch.randn(count, 24))
        for count, length in ((30, 4), (10, 6))
    )
    return ClipSet(buckets, TextCondition(torch.zeros(1, 1, 32), torch.zeros(1, 24)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_buckets_are_drawn_by_their_size(clips):
    lengths = [clips.sample(2, generator(seed))[1].states.shape[1] for seed in range(200)]
    assert set(lengths) == {4, 6}
    assert 0.65 < lengths.count(4) / len(lengths) < 0.85


def test_dropped_captions_are_the_empty_prompt(clips):
    text = FlowTask(clips=clips, batch=3, drop_text=1.0).draw(generator())[3]
    assert text.states.shape == (3, 1, 32)
    assert not text.states.any()
    assert not text.pooled.any()


def test_the_pooled_text_can_be_dropped_alone(clips):
    text = FlowTask(clips=clips, batch=3, drop_text=0.0, drop_pooled=1.0).draw(generator())[3]
    assert text.states.shape[1] in (4, 6)
    assert text.states.any()
    assert not text.pooled.any()


def test_a_step_depends_on_its_generator_alone(clips):
    task = FlowTask(clips=clips, batch=3)
    first, again, other = (task.draw(generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_a_new_model_is_silent_and_learns_from_the_first_step(clips):
    model = new_transformer(tiny(), text_deviation=2.0)
    text = TextCondition(torch.randn(2, 4, 32), torch.randn(2, 24))
    out = velocity(model, torch.randn(2, 4, 2, 4, 4), torch.rand(2), text, torch.ones(2))
    assert not out.any()
    FlowTask(clips=clips, batch=3).loss(model, generator()).backward()
    assert model.final_layer.linear.weight.grad.any()


def test_a_student_equal_to_its_teacher_errs_only_where_guidance_acts(clips, monkeypatch):
    teacher = new_transformer(tiny(), 1.0)
    for weight in teacher.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    for weight in teacher.guidance_in.parameters():
        torch.nn.init.zeros_(weight)  # deaf to its guidance input, as a plain model is
    task = DistillationTask(flow=FlowTask(clips=clips, batch=3), teacher=teacher)
    module = "hyvideo_nodes.hyvideo_core.training.transformer.GUIDANCE_RANGE"
    monkeypatch.setattr(module, (1.0, 1.0))
    assert float(task.loss(teacher, generator()).detach()) < 1e-4
    monkeypatch.setattr(module, (8.0, 8.0))
    assert float(task.loss(teacher, generator()).detach()) > 0
