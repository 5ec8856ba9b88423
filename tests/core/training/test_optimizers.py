import pytest
import torch
from hyvideo_nodes.hyvideo_core.attention import matmul_attention, sdpa
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.model.transformer import Transformer
from hyvideo_nodes.hyvideo_core.training.loops import Run, Schedule
from hyvideo_nodes.hyvideo_core.training.optimizers import Muon, is_hidden_matrix, orthogonalized
from torch import Tensor, nn


class Stack(nn.Module):
    """One hidden matrix between two outer layers, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.blocks = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 16))
        self.last = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.blocks(h))


def loss_at(module: Stack, generator: torch.Generator) -> Tensor:
    x = torch.randn(32, 8, generator=generator)
    return (module(x) - x.flip(1).tanh()).square().mean()


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 64), (2, 64, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one_and_the_same_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalized(matrices).double())
    assert values.min() > 0.4
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    nearest = (u @ vh).flatten(1)
    likeness = torch.nn.functional.cosine_similarity(orthogonalized(matrices).flatten(1), nearest)
    assert likeness.min() > 0.95


def test_a_fused_layer_moves_as_the_square_matrices_that_it_is_stacked_from():
    module = Stack()
    before = module.blocks[0].weight.detach().clone()
    optimizer = Muon(module, lr=0.1, weight_decay=0.0)
    loss_at(module, torch.Generator().manual_seed(2)).backward()
    optimizer.step()
    change = (module.blocks[0].weight - before).detach() / (0.1 * 0.2 * 16**0.5)
    for piece in change.split(16):
        assert torch.linalg.svdvals(piece.double()).median() == pytest.approx(1.0, abs=0.35)


def test_other_parameters_move_as_adamw_moves_them():
    ours, theirs = Stack(), Stack()
    muon = Muon(ours, lr=1e-2, weight_decay=0.1)
    adam = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for seed in range(3):
        for module, optimizer in ((ours, muon), (theirs, adam)):
            optimizer.zero_grad()
            # the hidden layers would part the two: their gradients are left out
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
            module.last(module.first(x)).square().mean().backward()
            optimizer.step()
    for name in ("first", "last"):
        assert torch.allclose(getattr(ours, name).weight, getattr(theirs, name).weight, atol=1e-6)
        assert torch.allclose(getattr(ours, name).bias, getattr(theirs, name).bias, atol=1e-6)


def test_a_resumed_run_takes_the_same_steps(tmp_path):
    schedule = Schedule(steps=20, learning_rate=1e-2, warmup=2, muon=True)
    whole, stopped = Run(Stack(), schedule), Run(Stack(), schedule)
    for _ in range(6):
        whole.advance(loss_at)
        stopped.advance(loss_at)
    stopped.save(tmp_path / "run.pt")
    resumed = Run(Stack(), schedule)
    resumed.load(tmp_path / "run.pt")
    losses = [(whole.advance(loss_at), resumed.advance(loss_at)) for _ in range(4)]
    assert all(first == second for first, second in losses)


def test_of_the_transformer_what_lies_in_blocks_is_hidden_and_what_conditions_them_is_not():
    hidden = {name for name, parameter in Transformer(tiny()).named_parameters() if is_hidden_matrix(name, parameter)}
    assert {"double_blocks.0.img_attn_qkv.weight", "single_blocks.0.linear1.weight"} <= hidden
    assert not any(part in name for name in hidden for part in ("mod", "norm", "bias", "final_layer", "img_in"))


def test_attention_by_matrix_products_equals_the_fused_one_with_gradients():
    q, k, v = (torch.randn(2, 21, 3, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    gradients = []
    for attention in (sdpa, matmul_attention):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        attention(*inputs).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    assert torch.allclose(sdpa(q, k, v), matmul_attention(q, k, v), atol=1e-6)
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, atol=1e-4)
