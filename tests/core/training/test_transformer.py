import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.training.clips import Bucket, ClipSet
from hyvideo_nodes.hyvideo_core.training.objectives import TextCondition, velocity
from hyvideo_nodes.hyvideo_core.training.transformer import DistillationTask, FlowTask, Source, new_transformer


@pytest.fixture
def clips() -> ClipSet:
    """Two buckets of random clips, with captions of 4 and of 6 tokens."""
    buckets = tuple(
        Bucket(torch.randn(count, 4, 2, 4, 4), torch.randn(count, length, 32), torch.randn(count, 24))
        for count, length in ((30, 4), (10, 6))
    )
    return ClipSet(buckets, TextCondition(torch.zeros(1, 1, 32), torch.zeros(1, 24)))


def flow_task(*clips: ClipSet, **options: float) -> FlowTask:
    """Batches of 3 from each set, the first of which is drawn from three times as often as the others."""
    sources = [Source(name=str(i), clips=c, batch=3, share=1.0 if i else 3.0) for i, c in enumerate(clips)]
    return FlowTask(sources=tuple(sources), **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_buckets_are_drawn_by_their_size(clips):
    lengths = [clips.sample(2, generator(seed))[1].states.shape[1] for seed in range(200)]
    assert set(lengths) == {4, 6}
    assert 0.65 < lengths.count(4) / len(lengths) < 0.85


def test_dropped_captions_are_the_empty_prompt(clips):
    text = flow_task(clips, drop_text=1.0).draw_dropped(generator()).text
    assert text.states.shape == (3, 1, 32)
    assert not text.states.any()
    assert not text.pooled.any()


def test_the_pooled_text_can_be_dropped_alone(clips):
    text = flow_task(clips, drop_text=0.0, drop_pooled=1.0).draw_dropped(generator()).text
    assert text.states.shape[1] in (4, 6)
    assert text.states.any()
    assert not text.pooled.any()


def test_a_step_depends_on_its_generator_alone(clips):
    first, again, other = (flow_task(clips).draw(generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise)


def test_sizes_are_drawn_by_their_share_and_evaluated_each(clips):
    still = ClipSet((Bucket(torch.randn(9, 4, 1, 6, 6), torch.randn(9, 5, 32), torch.randn(9, 24)),), clips.empty)
    task = flow_task(clips, still)
    shapes = [tuple(task.draw(generator(seed)).latents.shape) for seed in range(200)]
    assert set(shapes) == {(3, 4, 2, 4, 4), (3, 4, 1, 6, 6)}
    assert 0.65 < shapes.count((3, 4, 2, 4, 4)) / len(shapes) < 0.85
    with torch.no_grad():
        figures = task.evaluate(new_transformer(tiny(), 1.0), num_batches=1)
    assert set(figures) == {"0", "1"}
    assert all(1.5 < figure < 2.5 for figure in figures.values())  # a silent model misses noise minus latents whole


def test_a_new_model_is_silent_and_learns_from_the_first_step(clips):
    model = new_transformer(tiny(), text_deviation=2.0)
    text = TextCondition(torch.randn(2, 4, 32), torch.randn(2, 24))
    out = velocity(model, torch.randn(2, 4, 2, 4, 4), torch.rand(2), text, torch.ones(2))
    assert not out.any()
    flow_task(clips).loss(model, generator()).backward()
    assert model.final_layer.linear.weight.grad.any()


def test_a_student_equal_to_its_teacher_errs_only_where_guidance_acts(clips, monkeypatch):
    teacher = new_transformer(tiny(), 1.0)
    for weight in teacher.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    for weight in teacher.guidance_in.parameters():
        torch.nn.init.zeros_(weight)  # deaf to its guidance input, as a plain model is
    task = DistillationTask(flow=flow_task(clips), teacher=teacher)
    module = "hyvideo_nodes.hyvideo_core.training.transformer.GUIDANCE_RANGE"
    monkeypatch.setattr(module, (1.0, 1.0))
    assert float(task.loss(teacher, generator()).detach()) < 1e-4
    monkeypatch.setattr(module, (8.0, 8.0))
    assert float(task.loss(teacher, generator()).detach()) > 0
