import json
from itertools import pairwise

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.errors import NonFiniteError, OptionError
from hyvideo_nodes.hyvideo_core.model.transformer import Transformer
from hyvideo_nodes.hyvideo_core.training.loops import Run, Schedule, train
from hyvideo_nodes.hyvideo_core.training.objectives import TextCondition, flow_matching_loss
from torch import Tensor, nn

SCHEDULE = Schedule(steps=12, learning_rate=1e-2, warmup=2, save_every=4, evaluate_every=4)


def new_module() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(6, 6)


def loss_at(module: nn.Linear, generator: torch.Generator) -> Tensor:
    x = torch.randn(4, 6, generator=generator)
    return (module(x) - x.flip(1)).square().mean()


def losses(path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def test_a_stopped_run_resumes_with_the_same_losses_and_weights(tmp_path):
    whole = train(new_module(), SCHEDULE, loss_at, folder=tmp_path / "whole", name="stage")

    stopped = Run(new_module(), SCHEDULE)
    for _ in range(4):
        stopped.advance(loss_at)
    stopped.save(tmp_path / "stopped" / "stage.pt")
    resumed = train(new_module(), SCHEDULE, loss_at, folder=tmp_path / "stopped", name="stage")

    assert torch.equal(whole.weight, resumed.weight)
    assert losses(tmp_path / "whole" / "stage.jsonl")[1:] == losses(tmp_path / "stopped" / "stage.jsonl")


def test_a_finished_stage_is_only_loaded(tmp_path):
    first = train(new_module(), SCHEDULE, loss_at, folder=tmp_path, name="stage")

    def must_not_run(module: nn.Linear, generator: torch.Generator) -> Tensor:
        raise AssertionError

    again = train(nn.Linear(6, 6), SCHEDULE, must_not_run, folder=tmp_path, name="stage")
    assert torch.equal(first.weight, again.weight)


def test_training_lowers_the_loss_and_averages_the_weights(tmp_path):
    schedule = Schedule(steps=200, learning_rate=3e-2, warmup=2, average_decay=0.9, evaluate_every=20)
    averaged = train(new_module(), schedule, loss_at, folder=tmp_path, name="stage")
    recorded = losses(tmp_path / "stage.jsonl")
    assert recorded[-1] < 0.2 * recorded[0]
    assert float(loss_at(averaged, torch.Generator().manual_seed(0))) < 0.2 * recorded[0]
    assert not any(weight.requires_grad for weight in averaged.parameters())


def test_figures_come_from_the_averaged_weights_without_gradients(tmp_path):
    seen = []

    def evaluate(module: nn.Linear) -> dict[str, float]:
        seen.append((torch.is_grad_enabled(), module.weight.requires_grad))
        return {"figure": 0.5}

    train(new_module(), SCHEDULE, loss_at, folder=tmp_path, name="stage", evaluate=evaluate)
    assert seen == [(False, False)] * 3
    assert json.loads((tmp_path / "stage.jsonl").read_text().splitlines()[-1])["figure"] == 0.5


def test_the_rate_warms_up_and_falls():
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10, final_share=0.1)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_no_steps_are_refused():
    with pytest.raises(OptionError, match="0 steps"):
        Schedule(steps=0, learning_rate=1.0)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_weights():
    module = new_module()
    before = module.weight.detach().clone()
    with pytest.raises(NonFiniteError, match="training step 0"):
        Run(module, SCHEDULE).advance(lambda module, _: module.weight.sum() * float("nan"))
    assert torch.equal(module.weight, before)


def test_one_step_trains_after_sampling_under_inference_mode(tmp_path):
    model = Transformer(tiny())
    latents, levels = torch.randn(2, 4, 2, 4, 4), torch.tensor([0.3, 0.7])
    text = TextCondition(torch.randn(2, 5, 32), torch.randn(2, 24))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.inference_mode():
        model(latents, levels * 1000, [text.states], text.pooled, torch.full((2,), 6000.0))
        # a host may even start the training from inside
        train(
            model,
            Schedule(steps=1, learning_rate=1e-2),
            lambda model, generator: flow_matching_loss(
                model, latents, torch.randn(latents.shape, generator=generator), levels, text
            ),
            folder=tmp_path,
            name="stage",
        )
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert len(changed) > 0.9 * len(before)
