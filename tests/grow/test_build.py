"""The grow plan against the independent copies of `tests/growth.py`, which know none of its formulas, and its own contract."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.growth.build import grow_plan
from mutransfer.growth.tensors import GrowPlan
from mutransfer.growth.trace import NotTraced, feed, trace
from mutransfer.growth.weights import grown
from mutransfer.models import gpt_factory, mlp_factory
from tests.growth import Case, copies, difference, plan_of
from tests.growth import base_model as small_of
from tests.growth_models import CASES


@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
@pytest.mark.parametrize("name", CASES)
def test_traced_copies_are_those_of_the_oracle(name: str, placement: str) -> None:
    """Every tensor, for every kind of axis: the oracle is told the units by hand and derives each factor from the architecture."""
    case: Case = CASES[name]
    plan = plan_of(case, True, "adam", placement)
    small = small_of(case)
    call = tuple(case.inputs(torch.Generator().manual_seed(0))), {}
    made = grow_plan(small, case.make(**case.target), plan, feeds=[feed(call)])
    tensors = dict(small.named_parameters())
    expected = copies(plan, case, small)
    for tensor in made.tensors:
        if not tensor.buffer:
            found = grown(tensor, tensors[tensor.source].detach())
            assert difference(found, expected[tensor.name]) < 1e-12, (tensor.name, list(map(str, tensor.maps)))
    assert made.exact and not made.notes


def test_both_models_may_be_on_the_meta_device_and_none_is_run() -> None:
    make = gpt_factory(vocab_size=50_000, context=1024, depth=12)
    with torch.device("meta"):
        small, big = make(width=768), make(width=3072)
    plan = mt.plan(big, base=small, optimizer="adamw")
    called: list[nn.Module] = []
    for model in (small, big):
        model.register_forward_pre_hook(lambda module, _: called.append(module))
    made = grow_plan(small, big, plan)
    assert not any(module in (small, big) for module in called) and all(p.is_meta for p in big.parameters())
    assert str(made.by_name["blocks.3.attn.q_proj.weight"].maps[0]) == "12→48·64"


def test_it_is_json_and_prints_what_it_does(tmp_path: Path) -> None:
    make = gpt_factory(vocab_size=16, context=8, head_size=4)
    small, big = make(width=8, depth=2), make(width=16, depth=4)
    made = grow_plan(small, big, mt.plan(big, base=small, optimizer="adamw"))
    made.save(tmp_path / "grow.json")
    assert GrowPlan.load(tmp_path / "grow.json") == made == GrowPlan.from_dict(json.loads(json.dumps(made.to_dict())))
    text = str(made)
    assert "2→4·4" in text and "new block, starts at zero" in text and "depth: identity" in text
    for broken in ("{", "[]", '{"version": 1}', '{"version": 9, "tensors": []}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(mt.InputError, match="grow plan"):
            GrowPlan.load(tmp_path / "broken.json")
    with pytest.raises(mt.InputError, match="cannot read grow plan"):
        GrowPlan.load(tmp_path / "absent.json")


def test_declared_maps_replace_traced_ones() -> None:
    make = mlp_factory(inputs=3, outputs=2, depth=2)
    small, big = make(width=4), make(width=8)
    plan = mt.plan(big, base=small, optimizer="sgd")
    name = next(row.name for row in plan.rows if row.target_shape == (8, 3))
    made = grow_plan(small, big, plan, maps={name: {0: "2→4·2"}})
    assert str(made.by_name[name].maps[0]) == "2→4·2"
    with pytest.raises(mt.InputError, match=r"maps: axis 0 of .* goes from 4 to 8"):
        grow_plan(small, big, plan, maps={name: {0: "2→4·3"}})


class Blind(nn.Module):
    """A forward that no guess can feed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, width), nn.Linear(width, 5)

    def forward(self, batch: dict) -> torch.Tensor:
        return self.last(torch.tanh(self.first(batch["x"])))


def test_a_model_that_cannot_be_traced_is_refused_and_a_batch_lets_it_be() -> None:
    small, big = Blind(4), Blind(8)
    plan = mt.plan(big, base=small, optimizer="sgd")
    with pytest.raises(NotTraced):
        trace(small)
    with pytest.raises(mt.InputError, match=r"small model's forward takes no guessed input.* say maps='units'"):
        grow_plan(small, big, plan)
    assert str(grow_plan(small, big, plan, maps="units").by_name["first.weight"].maps[0]) == "4→8"
    call = ({"x": torch.randn(2, 7)},), {}
    assert not grow_plan(small, big, plan, feeds=[feed(call)]).notes
    with pytest.raises(mt.InputError, match="maps='heads': write maps by name pattern"):
        grow_plan(small, big, plan, maps="heads")


def test_buffers_without_a_brother_stay_as_they_are() -> None:
    small, big = Blind(4), Blind(8)
    big.register_buffer("mask", torch.ones(3))
    made = grow_plan(small, big, mt.plan(big, base=small, optimizer="sgd"), maps="units")
    assert "mask" not in made.by_name and any("'mask'" in note for note in made.notes)


def test_a_tensor_that_the_pass_does_not_use_is_named() -> None:
    class Auxiliary(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.spare, self.head = nn.Linear(7, width), nn.Linear(width, 3), nn.Linear(width, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.first(x))
            return self.spare(h) if self.training else self.head(h)

    small, big = Auxiliary(4), Auxiliary(8)
    notes = grow_plan(small, big, mt.plan(big, base=small, optimizer="sgd")).notes
    assert [note for note in notes if "'spare.weight'" in note] and not any("'head" in note for note in notes)
