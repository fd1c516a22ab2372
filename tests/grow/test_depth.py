"""Blocks: function-preserving, repeated in place or as a stack; with 1/L factors or without; width at the same time."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.models import gpt_factory, resnet_factory

VOCABULARY, LENGTH = 32, 8
MAKE = gpt_factory(vocab_size=VOCABULARY, context=LENGTH, head_size=8, bias=True)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    ids = [torch.randint(VOCABULARY, (2, 4, LENGTH), generator=g) for _ in range(count)]
    return [(x, y) for x, y in ids]


def trained(depth: int, recipe: str | None) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    sizes = dict(width=16, depth=depth)
    if recipe is None:
        small: Any = MAKE(**sizes).double()
        optimizer: Any = torch.optim.AdamW(small.parameters(), lr=1e-2)
    else:
        plan = mt.plan(MAKE, base=sizes, target=sizes, optimizer="adamw", recipe=recipe)
        small = plan.initialize(MAKE(**sizes)).double()
        optimizer = plan.optimizer(small, lr=1e-2)
    for batch in batches(20):
        optimizer.zero_grad()
        loss(small, batch).backward()
        optimizer.step()
    return small, optimizer


def change(small: nn.Module, big: nn.Module) -> float:
    x = batches(1)[0][0]
    with torch.no_grad():
        a, b = small(x), big(x)
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
@pytest.mark.parametrize("recipe", [None, "mup", "completep"])
def test_new_blocks_that_add_nothing_keep_the_function(recipe: str | None, placement: str) -> None:
    """In width and depth together, whatever the plan's 1/L: an old block keeps its whole effect."""
    small, optimizer = trained(2, recipe)
    sizes = dict(width=32, depth=5)
    plan = None
    if recipe is not None:
        base = dict(width=16, depth=2)
        plan = mt.plan(MAKE, base=base, target=sizes, optimizer="adamw", recipe=recipe, placement=placement)
    big, big_optimizer, record = mt.grow(small, optimizer, to=MAKE(**sizes).double(), plan=plan, show=False)
    assert change(small, big) < 1e-13
    assert record.plan.depth == "identity" and not record.plan.exact
    if plan is not None:
        assert plan.verify(big_optimizer, big)["lr"] == pytest.approx(1e-2)
    for batch in batches(3):  # and the new blocks learn
        big_optimizer.zero_grad()
        loss(big, batch).backward()
        big_optimizer.step()
    new = [t.name for t in record.plan.tensors if t.fresh == "zero" and t.name.endswith("weight")]
    assert len(new) == 6 and all(big.get_parameter(name).abs().max() > 0 for name in new)


@pytest.mark.parametrize(("mode", "order"), [("interleave", [0, 0, 1, 1]), ("append", [0, 1, 0, 1])])
def test_stacking_repeats_blocks_with_their_optimizer_state(mode: Any, order: list[int]) -> None:
    small, optimizer = trained(2, None)
    big, big_optimizer, record = mt.grow(small, optimizer, to=MAKE(width=16, depth=4).double(), depth=mode, show=False)
    theirs: Any = small
    for i, j in enumerate(order):
        ours, source = big.get_parameter(f"blocks.{i}.mlp.up.weight"), theirs.get_parameter(f"blocks.{j}.mlp.up.weight")
        assert torch.equal(ours, source)
        assert torch.equal(big_optimizer.state[ours]["exp_avg"], optimizer.state[source]["exp_avg"])
    assert any("no 1/L" in note for note in record.plan.notes)
    _, fresh, _ = mt.grow(
        small, optimizer, to=MAKE(width=16, depth=4).double(), depth=mode, show=False, optimizer_state="fresh"
    )
    assert not fresh.state


def test_with_one_over_depth_repeated_blocks_together_do_what_the_one_did() -> None:
    """Copies of a block, each times 1/2, are two half steps along the stream, and their error falls with the size of a step.

    The stream must be larger than one branch (here: an embedding of size one): a norm makes steps of what is small before it.
    """
    make = gpt_factory(vocab_size=VOCABULARY, context=LENGTH, head_size=8, embedding_multiplier=50.0)
    changes = []
    for depth in (2, 4, 8, 16):
        base, sizes = dict(width=16, depth=depth), dict(width=16, depth=2 * depth)
        part = mt.plan(make, base=dict(width=16, depth=2), target=base, optimizer="adamw", recipe="completep")
        torch.manual_seed(0)
        small = part.initialize(make(**base)).double()
        plan = mt.plan(make, base=base, target=sizes, optimizer="adamw", recipe="completep")
        big, _, _ = mt.grow(small, to=make(**sizes).double(), plan=plan, depth="interleave", show=False, verify=False)
        changes.append(change(small, big))
    assert all(b < 0.7 * a for a, b in itertools.pairwise(changes)), changes


def test_stages_of_a_resnet_grow_in_depth() -> None:
    make: Callable[..., nn.Module] = resnet_factory()
    torch.manual_seed(0)
    small, big = make(width=8, blocks=(2, 2)).double(), make(width=16, blocks=(3, 4)).double()
    small.train()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for _ in range(3):
        small(x)
    mt.grow(small, to=big, show=False)
    for model in (small, big):
        model.eval()
    assert torch.allclose(big(x), small(x), rtol=1e-10)


class Chain(nn.Module):
    """Layers without a stream around them: none of them can start by adding nothing."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(7, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(depth)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def test_a_block_without_a_residual_branch_is_refused_and_can_be_repeated() -> None:
    with pytest.raises(mt.InputError, match=r"depth|branch"):
        mt.grow(Chain(2), to=Chain(4), show=False)
    mt.grow(Chain(2), to=Chain(4), depth="append", show=False, verify="report")


def test_wrong_depths_are_one_line() -> None:
    with pytest.raises(mt.InputError, match="depth='deeper': one of 'identity', 'interleave', 'append'"):
        mt.grow(Chain(2), to=Chain(4), depth="deeper", show=False)  # pyright: ignore[reportArgumentType]
    with pytest.raises(mt.InputError, match="shrinks from 4 to 2"):
        mt.grow(Chain(4), to=Chain(2), depth="append", show=False)
