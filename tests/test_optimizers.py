"""What an optimizer declares is what it does: real steps against the formula of each; refusals whose advice works."""

import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.models import gpt_factory, mlp_factory
from mutransfer.optimizers import GRADIENT, REGISTRY, SQUARED_NORMS, facts_for, optimizer_class
from tests.plan_cases import Lion, build, train

MUONS = ["muon-uvt", "muon", "muon-spectral", "muon-kimi"]


@pytest.mark.parametrize("name", MUONS)
def test_a_muon_step_has_the_operator_norm_of_its_formula(name: str) -> None:
    """‖ΔW‖₂ = lr·‖A‖ of every hidden matrix, wide, tall and square, within the accuracy of five Newton–Schulz steps."""
    make = gpt_factory(vocab_size=17, context=8, head_size=8, kv_heads=1)
    plan = mt.plan(make, base=dict(width=16), target=dict(width=48), optimizer=name)
    model = plan.initialize(build(make, dict(width=48)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    base_lr = 0.01
    optimizer = plan.optimizer(model, lr=base_lr, overrides={"*": {"weight_decay": 0.0}})
    train(model, optimizer, 1)
    shapes = set()
    for row, p in plan.named(model):
        if row.optimizer != name:
            continue
        fan_out, fan_in = (Fraction(n) for n in row.target_shape)
        due = base_lr * row.ratios.lr * math.sqrt(SQUARED_NORMS[plan.facts[name].norm](fan_in, fan_out))
        found = float(torch.linalg.matrix_norm(p.detach() - before[row.name], 2))
        assert 0.5 < found / due < 1.5, row.name
        shapes.add(fan_out > fan_in if fan_out != fan_in else None)
    assert shapes == {True, False, None}
    assert {row.optimizer for row in plan.rows} == {name, "adamw"}


@pytest.mark.parametrize("name", MUONS)
def test_a_muon_step_changes_the_outputs_by_the_same_amount_at_every_width(name: str) -> None:
    """The condition itself: √(in/out)·‖ΔW‖₂ of a hidden matrix does not depend on width (theory §1)."""
    make = gpt_factory(vocab_size=17, context=8, head_size=8)
    found = []
    for width in (16, 64, 144):
        plan = mt.plan(make, base=dict(width=16), target=dict(width=width), optimizer=name)
        rows = plan.groups(build(make, dict(width=width)), lr=1.0)
        lr = {n: g["lr"] for g in rows for n in g["names"]}["blocks.1.mlp.up.weight"]
        row = plan["blocks.1.mlp.up.weight"]
        fan_out, fan_in = row.target_shape
        native = math.sqrt(max(1.0, fan_out / fan_in)) if name != "muon-kimi" else 0.2 * math.sqrt(max(fan_in, fan_out))
        found.append(math.sqrt(fan_in / fan_out) * lr * native)  # what torch's Muon multiplies by is its own
    assert found == pytest.approx([found[0]] * 3, rel=1e-12)


class NamedLayers(nn.Module):
    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, width), nn.Linear(width, 3 * width), nn.Linear(3 * width, 4)


def sequential(width: int, depth: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


class ViTLike(nn.Module):
    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.cls, self.patch = nn.Parameter(torch.zeros(1, 1, width)), nn.Linear(48, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 4 * width) for _ in range(depth))
        self.head = nn.Linear(width, 10)


STRUCTURES: dict[str, tuple[Any, set[str]]] = {
    "gpt, fixed kv heads": (gpt_factory(vocab_size=17, context=8, head_size=8, kv_heads=1), {"q_proj", "k_proj", "v_proj", "out_proj", "up", "down"}),
    "tied gpt": (gpt_factory(vocab_size=17, context=8, head_size=8, tied=True), {"q_proj", "k_proj", "v_proj", "out_proj", "up", "down"}),
    "named layers": (NamedLayers, {"fc2"}),
    "sequential": (sequential, {"2"}),
    "mlp": (mlp_factory(inputs=12, outputs=5), {"0", "1"}),
    "residual mlp": (mlp_factory(inputs=12, outputs=5, residual=True, norm="layernorm"), {"up", "down"}),
    "vit": (ViTLike, {"self_attn", "out_proj", "linear1", "linear2"}),
}  # fmt: skip


@pytest.mark.parametrize("structure", STRUCTURES)
def test_muon_runs_the_same_tensors_at_every_ratio(structure: str) -> None:
    """The base tunes the very mix that the target trains: growth plays no part in who runs what."""
    make, expected = STRUCTURES[structure]
    found = []
    for target in (dict(width=16, depth=2), dict(width=48, depth=2)):
        plan = mt.plan(make, base=dict(width=16, depth=2), target=target, optimizer="muon", head_size=(8, 8))
        found.append({row.name: row.optimizer for row in plan.rows})
        assert not any("runs under" in note for note in plan.notes)
    assert found[0] == found[1]
    assert {name.split(".")[-2] for name, optimizer in found[0].items() if optimizer == "muon"} == expected


def test_where_position_and_growth_disagree_the_plan_says_so_and_roles_decide() -> None:
    class TwoHeads(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inputs, self.body = nn.Linear(5, width), nn.Linear(width, width)
            self.policy, self.value = nn.Linear(width, 4), nn.Linear(width, 1)

    sizes = dict(base=dict(width=16), target=dict(width=32))
    plan = mt.plan(TwoHeads, **sizes, optimizer="muon")
    assert plan["policy.weight"].optimizer == "muon" and any("policy.weight runs under" in note for note in plan.notes)
    told = mt.plan(TwoHeads, **sizes, optimizer="muon", roles={"policy.weight": "output"})
    assert told["policy.weight"].optimizer == "adamw" and told["body.weight"].optimizer == "muon" and not told.notes
    alone = mt.plan(
        TwoHeads, base=dict(width=16), target=dict(width=16), optimizer="muon", roles={"policy.weight": "output"}
    )
    assert [row.optimizer for row in alone.rows] == [row.optimizer for row in told.rows]


@pytest.mark.parametrize(("name", "size"), [("lion", 1.0), ("adamw", 1.0), ("sgd", None)])
def test_elementwise_and_sgd_steps_have_their_declared_size(name: str, size: float | None) -> None:
    facts, g = REGISTRY[name], torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.zeros(40, 60, dtype=torch.float64))
    w.grad = torch.randn(40, 1, generator=g, dtype=torch.float64) @ torch.randn(1, 60, generator=g, dtype=torch.float64)
    classes: dict[str, Any] = {"lion": Lion, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    classes[name]([w], lr=0.5, weight_decay=0.0).step()
    norm = float(torch.linalg.matrix_norm(w.detach(), 2))
    if facts.norm == GRADIENT:
        assert norm == pytest.approx(0.5 * float(torch.linalg.matrix_norm(w.grad, 2)))
    else:
        assert norm == pytest.approx(0.5 * math.sqrt(SQUARED_NORMS[facts.norm](Fraction(60), Fraction(40))), rel=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad"])
def test_declared_degree_decay_and_eps_are_those_of_torch(name: str) -> None:
    """A(tG) = tᵖ·A(G) for a fresh optimizer; the class's decay is coupled or decoupled as declared."""
    facts, cls = facts_for(name), optimizer_class(name)
    assert cls is not None

    def step(scale: float, decay: float = 0.0, start: float = 1.0) -> torch.Tensor:
        w = nn.Parameter(torch.full((3,), start, dtype=torch.float64))
        options = dict(lr=0.1, weight_decay=decay) | (dict(eps=1e-300) if facts.eps_kind else {})
        optimizer = cls([w], **options)
        for i in range(8):  # RAdam begins with plain averages
            w.grad = scale * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64) * (1 + i)
            before = w.detach().clone()
            optimizer.step()
        return w.detach() - before

    assert torch.allclose(step(4.0), 4.0**facts.degree * step(1.0), rtol=1e-9)
    moved = step(1e6, decay=0.1, start=1.0) - step(1e6, start=1.0)
    decoupled = (
        facts.degree == 0 and float(moved.abs().max()) > 1e-4
    )  # beside a huge gradient a coupled decay is nothing
    assert facts.degree == 1 or decoupled == (facts.decay == "decoupled")


def test_a_decoupled_variant_of_a_coupled_class_is_seen_and_built() -> None:
    make = gpt_factory(vocab_size=17, context=8, head_size=8)
    given = torch.optim.Adam([nn.Parameter(torch.zeros(1))], decoupled_weight_decay=True)
    plan = mt.plan(make, base=dict(width=16), target=dict(width=64), optimizer=given)
    model = make(width=64)
    optimizer = plan.optimizer(model, lr=0.1, weight_decay=0.1)
    assert all(group["decoupled_weight_decay"] for group in optimizer.param_groups)
    plan.verify(optimizer)
    named = mt.plan(make, base=dict(width=16), target=dict(width=64), optimizer="adam")
    asked = named.optimizer(model, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True)
    want = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert want == {name: group["weight_decay"] for group in asked.param_groups for name in group["names"]}
    coupled = named.optimizer(model, lr=0.1, weight_decay=0.1)
    assert want != {name: group["weight_decay"] for group in coupled.param_groups for name in group["names"]}


class Cautious(Lion):
    """A user's class that nobody has declared."""


def test_the_advice_for_an_unknown_class_works_when_followed() -> None:
    make = gpt_factory(vocab_size=17, context=8, head_size=8)
    sizes = dict(base=dict(width=16), target=dict(width=32))
    with pytest.raises(InputError) as caught:
        mt.plan(make, **sizes, optimizer=Cautious)
    line = re.search(r"mt\.register_optimizer\(.*\)\)", str(caught.value))
    assert line is not None and "\n" not in str(caught.value)
    try:
        eval(line.group(), {"mt": mt})
        plan = mt.plan(make, **sizes, optimizer=Cautious)
        model = make(width=32)
        optimizer = plan.optimizer(plan.initialize(model), lr=0.01)
        assert type(optimizer) is Cautious
        train(model, optimizer, 2)
        plan.verify(optimizer)
    finally:
        REGISTRY.pop("cautious", None)


def test_facts_can_be_given_without_registering() -> None:
    facts = mt.OptimizerFacts("mine", 0, "√(in·out)", "element", None, "decoupled")
    make = gpt_factory(vocab_size=17, context=8, head_size=8)
    plan = mt.plan(make, base=dict(width=16), target=dict(width=32), optimizer=facts)
    model = make(width=32)
    with pytest.raises(InputError, match=r"plan\.groups"):
        plan.optimizer(model, lr=0.1)
    optimizer = Lion(plan.groups(model, lr=0.1, weight_decay=0.1))
    train(model, optimizer, 2)
    assert plan.verify(optimizer)["lr"] == pytest.approx(0.1)


def test_a_class_made_in_a_function_runs_here_and_is_named_elsewhere(tmp_path: Path) -> None:
    """The live class is used in this process, never torch's class of the same name; another process gets the line to write."""

    class Adam(Lion):
        pass

    make = gpt_factory(vocab_size=17, context=8, head_size=8)
    plan = mt.plan(make, base=dict(width=16), target=dict(width=32), optimizer=Adam)
    model = make(width=32)
    assert type(plan.optimizer(model, lr=0.1)) is Adam
    plan.save(tmp_path / "plan.json")
    script = f"""
import mutransfer as mt
from mutransfer.models import gpt_factory, mlp_factory
plan = mt.Plan.load({str(tmp_path / "plan.json")!r})
model = gpt_factory(vocab_size=17, context=8, head_size=8)(width=32)
assert plan.groups(model, lr=0.1, weight_decay=0.1)
try:
    plan.optimizer(model, lr=0.1)
except mt.InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert "not importable" in done.stdout and "YourClass(plan.groups(model" in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        dict(degree=2),
        dict(norm="√out"),
        dict(degree=1),
        dict(norm=GRADIENT),
        dict(kind="vector"),
        dict(eps_kind="row"),
        dict(decay="l2"),
    ],
)
def test_impossible_facts_are_refused(wrong: dict) -> None:
    fields: dict[str, Any] = dict(name="x", degree=0, norm="1", kind="matrix", eps_kind=None, decay="decoupled")
    with pytest.raises(InputError, match="'x'"):
        mt.OptimizerFacts(**{**fields, **wrong})


def test_a_name_cannot_be_declared_twice_with_other_facts() -> None:
    mt.register_optimizer("AdamW", REGISTRY["adamw"])
    with pytest.raises(InputError, match="already declared"):
        mt.register_optimizer("adamw", REGISTRY["sgd"])
