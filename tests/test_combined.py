"""Muon and AdamW behind one interface behave like the hand-made pair, and like one torch optimizer."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import mutransfer as mt
from mutransfer.combined import CombinedOptimizer
from mutransfer.errors import InputError
from mutransfer.models import gpt_factory, mlp_factory
from tests.plan_cases import batch, build, loss, train

MAKE = gpt_factory(vocab_size=17, context=8, head_size=8, tied=True)
BASE, TARGET = dict(width=16, depth=2), dict(width=32, depth=2)


def planned(target: dict[str, int] = TARGET, **settings: Any):
    plan = mt.plan(MAKE, base=BASE, target=target, optimizer="muon")
    model = plan.initialize(build(MAKE, target))
    return plan, model, plan.optimizer(model, lr=0.02, weight_decay=0.1, **settings)


@pytest.mark.parametrize("make", [MAKE, mlp_factory(inputs=12, outputs=5)])
@pytest.mark.parametrize("scaling", ["muon", "muon-kimi"])
def test_at_ratio_one_it_is_the_hand_made_pair_bit_for_bit(make, scaling: str) -> None:
    """One base LR: Muon on the hidden matrices, AdamW on the rest, each with its own defaults."""
    plan = mt.plan(make, base=BASE, target=BASE, optimizer=scaling)
    ours, theirs = build(make, BASE), build(make, BASE)
    optimizer = plan.optimizer(plan.initialize(ours), lr=0.02, engine="torch")
    hidden = [p for n, p in theirs.named_parameters() if p.ndim == 2 and n.split(".")[0] in ("blocks", "layers")]
    rest = [p for p in theirs.parameters() if all(p is not q for q in hidden)]
    adjust = "match_rms_adamw" if scaling == "muon-kimi" else None
    pair = torch.optim.Muon(hidden, lr=0.02, adjust_lr_fn=adjust), torch.optim.AdamW(rest, lr=0.02)
    for step in range(5):
        for model, steppers in ((ours, (optimizer,)), (theirs, pair)):
            model.zero_grad()
            loss(model, step).backward()
            for stepper in steppers:
                stepper.step()
    assert isinstance(optimizer, CombinedOptimizer) and len(optimizer.param_groups) == 2
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["lambda", "cosine", "sequential"])
def test_schedulers_drive_every_part(kind: str) -> None:
    plan, model, optimizer = planned()
    first = [group["lr"] for group in optimizer.param_groups]
    if kind == "lambda":
        scheduler: Any = lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    elif kind == "cosine":
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 6)
    else:
        warm, cool = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 2), lr_scheduler.CosineAnnealingLR(optimizer, 6)
        scheduler = lr_scheduler.SequentialLR(optimizer, [warm, cool], [2])
    for _ in range(4):
        train(model, optimizer, 1)
        scheduler.step()
        plan.verify(optimizer)
    factors = {round(group["lr"] / lr, 9) for group, lr in zip(optimizer.param_groups, first, strict=True)}
    assert len(factors) == 1 and factors.pop() not in (0.0, 1.0)
    inner = [group["lr"] for part in optimizer.parts for group in part.param_groups]
    assert inner == [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("way", ["state dict", "file", "deepcopy", "pickle"])
def test_training_resumes_bit_for_bit(way: str) -> None:
    plan, model, optimizer = planned()
    train(model, optimizer, 3)
    if way == "deepcopy":
        other, again = copy.deepcopy((model, optimizer))
    elif way == "pickle":
        other, again = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        other = build(MAKE, TARGET, seed=9)
        other.load_state_dict(model.state_dict())
        again = plan.optimizer(other, lr=1.0)
        saved = copy.deepcopy(optimizer.state_dict())  # torch's own holds the live tensors
        if way == "file":
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
        again.load_state_dict(saved)
    assert plan.verify(again, other) == plan.verify(optimizer, model)
    assert train(model, optimizer, 3) == train(other, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(part.state is again.state for part in again.parts)


def test_it_behaves_like_one_optimizer() -> None:
    _, model, optimizer = planned(betas=(0.8, 0.9), eps=1e-5, nesterov=False)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))

    def closure() -> torch.Tensor:
        calls.append("closure")
        optimizer.zero_grad()
        value = loss(model, 0)
        value.backward()
        return value

    want = loss(model, 0)
    assert torch.equal(optimizer.step(closure), want) and calls == ["before", "closure", "after"]
    assert len(optimizer.state) == len(list(model.parameters()))
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    by_kind = {group["optimizer"]: group for group in optimizer.param_groups}
    assert by_kind["adamw"]["betas"] == (0.8, 0.9) and by_kind["muon"]["nesterov"] is False
    assert by_kind["muon"]["eps"] == pytest.approx(1e-7)  # Muon's own: the given eps is the element-wise optimizer's
    with pytest.raises(InputError, match="no further param group"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    assert sum(len(part.param_groups) for part in optimizer.parts) == len(optimizer.param_groups)
    assert "Combined" in repr(optimizer)


def test_the_state_of_another_width_is_refused() -> None:
    _, small, source = planned()
    train(small, source, 1)
    plan, _, optimizer = planned(dict(width=64, depth=2))
    optimizer.load_state_dict(source.state_dict())
    with pytest.raises(mt.PlanError, match=r"ratios|width"):
        plan.verify(optimizer)


def test_every_tensor_has_exactly_one_owner() -> None:
    plan, model, optimizer = planned()
    owned = [id(p) for part in optimizer.parts for group in part.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    muon = {row.name for row in plan.rows if row.optimizer == "muon"}
    assert muon == {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    assert batch(model, 0)[0].shape == (6, 8)
