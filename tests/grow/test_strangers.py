"""`mt.grow` on models written by hand, as a user calls it: exact where it says so, and named where it cannot be."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from tests.grow.strangers import STRANGERS, C

NOT_ALIKE = {
    "MQA": "parts grow by different factors",  # one key head serves more query heads, in one fused tensor under one rate
    "WeightNorm": "weight norm",
}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1])


def trained(name: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, list[Any], nn.Module, dict[str, Any]]:
    """A small stranger after five steps under plain Adam with L2, batches, and the big one."""
    cls, inputs, base, target, options = STRANGERS[name]
    torch.manual_seed(seed)
    small, big = cls(**base).double(), cls(**target).double()
    for p in small.parameters():  # nothing at a special value
        p.data += 0.1 * torch.randn_like(p)
    optimizer = torch.optim.Adam(small.parameters(), lr=3e-3, eps=1e-3, weight_decay=0.01)
    g = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(8):
        x = inputs(g)
        x = x.double() if x.is_floating_point() else x
        rows = small(x).flatten(0, -2).shape[0]
        batches.append((x, torch.randint(C, (rows,), generator=g)))
    for batch in batches[:5]:
        optimizer.zero_grad()
        loss(small, batch).backward()
        optimizer.step()
    return small, optimizer, batches, big, options


@pytest.mark.parametrize("name", STRANGERS)
def test_every_stranger_is_the_small_model_and_trains_as_it(name: str) -> None:
    small, optimizer, batches, big, options = trained(name)
    _, _, record = mt.grow(small, optimizer, to=big, batches=batches, loss=loss, steps=4, show=False, **options)
    assert record.verification is not None and record.verification.ok
    reasons = {t.inexact for t in record.plan.tensors if t.inexact}
    if name in NOT_ALIKE:
        assert any(re.search(NOT_ALIKE[name], reason) for reason in reasons) and not record.plan.exact
    else:
        assert record.plan.exact, reasons
        assert record.verification.steps == 4


def test_a_table_made_in_forward_is_named() -> None:
    """Rotary angles computed from the head size itself: twice the head size has other angles, and no copy of q and k is exact."""
    cls = STRANGERS["RotPairs"][0]
    torch.manual_seed(0)
    small, big = cls(w=16, h=2), cls(w=32, h=2)
    with pytest.raises(mt.GrowthError, match=r"first to depart"):
        mt.grow(small, to=big, show=False)
    _, _, record = mt.grow(small, to=cls(w=32, h=2), show=False, verify="report")
    assert {t.name for t in record.plan.tensors if "table" in t.inexact} >= {"q.weight", "k.weight"}


def test_uneven_multiples_are_refused_and_on_request_keep_the_function_only() -> None:
    cls = STRANGERS["GLU"][0]
    torch.manual_seed(0)
    small = cls(w=8).double()
    with pytest.raises(
        mt.InputError,
        match=r"axis 0 of 'a.weight' \(16, 7\) → \(24, 7\): 8 → 12 units is no whole multiple: take 8 or 16, or say uneven=True",
    ):
        mt.grow(small, to=cls(w=12).double(), show=False)
    big, _, record = mt.grow(small, to=cls(w=12).double(), uneven=True, show=False)
    x = torch.randn(6, 7, dtype=torch.float64)
    assert torch.allclose(big(x), small(x), rtol=1e-12)
    assert not record.plan.exact and all("no whole multiple" in t.inexact for t in record.plan.tensors if t.inexact)


def test_the_small_model_and_the_caller_s_randomness_are_left_alone() -> None:
    small, optimizer, batches, big, options = trained("Dense")
    before = {k: v.clone() for k, v in small.state_dict().items()}
    held = [{k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()} for s in optimizer.state.values()]
    modes, rng = [m.training for m in small.modules()], torch.get_rng_state()
    _, big_optimizer, _ = mt.grow(
        small, optimizer, to=big, batches=batches, loss=loss, noise=0.1, show=False, **options
    )
    assert torch.equal(rng, torch.get_rng_state()) and modes == [m.training for m in small.modules()]
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    for now, then in zip(optimizer.state.values(), held, strict=True):
        assert all(torch.equal(torch.as_tensor(now[k]), torch.as_tensor(then[k])) for k in then)
    mine = {t.data_ptr() for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)}
    theirs = {t.data_ptr() for s in big_optimizer.state.values() for t in s.values() if isinstance(t, Tensor)}
    assert not mine & theirs


class Distance(nn.Module):
    """Two inputs through one encoder, and what lies between: guessed arguments that are alike would say nothing."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(7, w)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.encoder(a) - self.encoder(b)).square().sum(-1)


class Divergence(nn.Module):
    """A second output that is a sum over units."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(7, w), nn.Linear(w, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.encoder(x))
        return self.head(h), h.square().sum()


@pytest.mark.parametrize("kind", [Distance, Divergence])
def test_guessed_inputs_show_a_sum_over_units_in_any_output(kind: Any) -> None:
    with pytest.raises(mt.GrowthError):
        mt.grow(kind(8), to=kind(16), show=False)


def test_random_masks_and_growing_outputs_are_said() -> None:
    torch.manual_seed(0)
    small, big = (nn.Sequential(nn.Linear(7, w), nn.Tanh(), nn.Dropout(0.1), nn.Linear(w, 5)) for w in (8, 16))
    _, _, record = mt.grow(small, to=big, show=False)
    assert any("random" in note for note in record.plan.notes) and not any("for ever" in n for n in record.notes)

    class Functional(nn.Module):
        """Dropout of no module, and none in its attention."""

        def __init__(self, w: int, p: float) -> None:
            super().__init__()
            self.first, self.head, self.p = nn.Linear(7, w), nn.Linear(w, 5), p

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(F.scaled_dot_product_attention(x, x, x))
            return self.head(F.dropout(h, self.p, self.training))

    for p in (0.0, 0.5):
        _, _, record = mt.grow(Functional(8, p), to=Functional(16, p), show=False)
        assert any("random" in note for note in record.notes) is (p > 0)
        assert any("for ever" in note for note in record.notes) is (p == 0)
    small, big = (nn.Sequential(nn.Linear(7, w), nn.Tanh()) for w in (8, 16))
    _, _, record = mt.grow(small, to=big, show=False)
    assert any("puts out grows" in note for note in record.plan.notes)


def test_complex_weights_frozen_tensors_and_empty_groups() -> None:
    class Waves(nn.Module):
        def __init__(self, w: int) -> None:
            super().__init__()
            self.first = nn.Linear(7, w)
            self.spectrum = nn.Parameter(torch.randn(w, w, dtype=torch.complex64) / w)
            self.head = nn.Linear(w, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((torch.tanh(self.first(x)).to(self.spectrum.dtype) @ self.spectrum).real)

    torch.manual_seed(0)
    small, big = Waves(8), Waves(16)
    small.first.requires_grad_(False)
    x = torch.randn(4, 7)
    optimizer = torch.optim.SGD(
        [{"params": [small.spectrum]}, {"params": []}, {"params": small.head.parameters()}], lr=0.1
    )
    _, big_optimizer, record = mt.grow(
        small, optimizer, to=big, batches=[x] * 2, loss=lambda m, b: m(b).square().mean(),
        axes={"spectrum": "in out"}, show=False,
    )  # fmt: skip
    assert record.verification.ok and not big.first.weight.requires_grad
    assert torch.allclose(big(x), small(x), atol=1e-6) and len(big_optimizer.param_groups) == 3  # the head in two


def test_tables_in_the_user_s_own_precision_do_not_stop_the_trace() -> None:
    """A mask and angles made in forward under a float64 default."""
    cls = STRANGERS["RotPairs"][0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        _, _, record = mt.grow(cls(w=16, h=2), to=cls(w=32, h=4), show=False)
    finally:
        torch.set_default_dtype(before)
    assert record.verification.ok and record.plan.exact
