"""The plan: the identity at ratio 1, composition, files, groups, refusals. Claims of theory §3–§4."""

import copy
import dataclasses
import functools
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.models import gpt_factory, mlp_factory
from tests.plan_cases import FACTORIES, SIZES, Lion, build, train, values

CLASSES = {
    "sgd": (torch.optim.SGD, dict(lr=0.1)),
    "momentum": (torch.optim.SGD, dict(lr=0.05, momentum=0.9, weight_decay=0.01)),
    "nesterov": (torch.optim.SGD, dict(lr=0.05, momentum=0.9, nesterov=True)),
    "adam": (torch.optim.Adam, dict(lr=1e-3)),
    "adam with L2": (torch.optim.Adam, dict(lr=1e-3, weight_decay=0.1, eps=1e-6)),
    "adamw": (torch.optim.AdamW, dict(lr=1e-3)),
    "adamw, all settings": (torch.optim.AdamW, dict(lr=1e-3, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-5)),
    "rmsprop": (torch.optim.RMSprop, dict(lr=1e-3)),
    "own lion": (Lion, dict(lr=1e-3, weight_decay=0.1)),
}


# ------------------------------------------------------------------ ratio 1 is the identity


@pytest.mark.parametrize("model_name", FACTORIES)
@pytest.mark.parametrize("source", ["factory", "modules"])
def test_at_ratio_one_initialize_changes_no_bit(model_name: str, source: str) -> None:
    make, sizes = FACTORIES[model_name], SIZES[model_name]
    model = build(make, sizes, seed=5)
    recipe = "mup" if model_name == "resnet" else "completep"
    if source == "factory":
        plan = mt.plan(make, base=sizes, target=sizes, recipe=recipe)
    else:
        plan = mt.plan(model, base=build(make, sizes, seed=6), recipe=recipe)
    before = values(model)
    plan.initialize(model, seed=3)
    assert plan.identity
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("model_name", ["mlp", "gpt", "tied gpt", "resnet"])
def test_at_ratio_one_training_is_bit_for_bit_the_users_own(model_name: str, name: str) -> None:
    """One group, the class's own defaults, the very same numbers after five steps."""
    make, sizes = FACTORIES[model_name], SIZES[model_name]
    cls, options = CLASSES[name]
    ours, theirs = build(make, sizes), build(make, sizes)
    plan = mt.plan(make, base=sizes, target=sizes, optimizer=cls)
    optimizer = plan.optimizer(plan.initialize(ours), **options)
    assert type(optimizer) is cls and len(optimizer.param_groups) == 1
    assert train(ours, optimizer, 5) == train(theirs, cls(theirs.parameters(), **options), 5)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


# ------------------------------------------------------------------ composition

WIDTHS = st.sampled_from([8, 16, 24, 32, 40, 64, 96])


@settings(max_examples=12, deadline=None)
@given(WIDTHS, WIDTHS, WIDTHS, st.tuples(*[st.integers(1, 4)] * 3), st.sampled_from(["sgd", "adamw", "adam", "lion", "muon-kimi"]),
       st.sampled_from(["mup", "completep", "depth-mup"]), st.booleans(), st.sampled_from(["absorbed", "multiplier"]))  # fmt: skip
def test_plans_compose(w0, w1, w2, depths, optimizer, recipe, tied, placement) -> None:
    """plan(base → mid) · plan(mid → target) = plan(base → target), for every ratio of every tensor."""
    make = gpt_factory(vocab_size=17, context=8, head_size=8, tied=tied)

    def ratios(a, b):
        sizes = dict(width=a[0], depth=a[1]), dict(width=b[0], depth=b[1])
        plan = mt.plan(make, base=sizes[0], target=sizes[1], optimizer=optimizer, recipe=recipe, placement=placement)
        return {row.name: row for row in plan.rows}

    mid, end = (w1, depths[1]), (w2, depths[2])
    first, second, whole = ratios((w0, depths[0]), mid), ratios(mid, end), ratios((w0, depths[0]), end)
    for name, row in whole.items():
        before = first.get(name) or first[next(r.base_name for r in second.values() if r.name == name)]
        if not row.optimizer == before.optimizer == second[name].optimizer:
            continue  # what is a matrix only while it grows
        for field in ("std", "lr", "decay", "l2", "gradient", "eps"):
            a, b, c = (getattr(r.ratios, field) for r in (before, second[name], row))
            assert c == (None if c is None else pytest.approx(a * b, rel=1e-9)), (name, field)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam", "lion", "muon", "muon-spectral"])
@pytest.mark.parametrize("model_name", ["mlp", "residual mlp", "gpt", "tied gpt", "resnet"])
def test_factory_and_modules_give_the_same_ratios(model_name: str, optimizer: str) -> None:
    make, base = FACTORIES[model_name], SIZES[model_name]
    target = {key: 2 * value for key, value in base.items()} if model_name != "mlp" else dict(width=32, depth=2)
    recipe = "completep" if model_name in ("residual mlp", "gpt", "tied gpt") else "mup"
    one = mt.plan(make, base=base, target=target, optimizer=optimizer, recipe=recipe)
    two = mt.plan(build(make, target), base=build(make, base), optimizer=optimizer, recipe=recipe)
    assert [(r.name, r.role, r.ratios, r.optimizer) for r in one.rows] == [
        (r.name, r.role, r.ratios, r.optimizer) for r in two.rows
    ]
    assert one.hooks == two.hooks


def test_one_pattern_of_branch_out_needs_no_list() -> None:
    make, base = FACTORIES["gpt"], SIZES["gpt"]
    options = dict(base=base, target={key: 2 * value for key, value in base.items()}, recipe="completep")
    assert mt.plan(make, **options, branch_out="blocks.*.*.[od]*") == mt.plan(
        make, **options, branch_out=["blocks.*.*.[od]*"]
    )


# ------------------------------------------------------------------ notes


def test_a_note_names_a_tensor_by_its_own_name_where_the_pattern_means_others_too() -> None:
    def make(width: int) -> nn.Module:
        sizes = (3, width, width, width, 10)
        return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))

    grows, shrinks = (mt.plan(make, base=dict(width=a), target=dict(width=b)).notes for a, b in ((32, 64), (64, 32)))
    assert grows == ("3.weight: its fan-out stays 10 while its fan-in grows: treated as an output",)
    assert shrinks == ("3.weight: its fan-out stays 10 while its fan-in shrinks: treated as an output",)


# ------------------------------------------------------------------ files and text


@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
@pytest.mark.parametrize("model_name", FACTORIES)
def test_a_saved_plan_is_the_same_plan(model_name: str, placement: str, tmp_path: Path) -> None:
    """Equal after JSON; the same weights, the same optimizer, the same table."""
    make, base = FACTORIES[model_name], SIZES[model_name]
    target = base | dict(width=4 * base["width"])
    extra = dict(blocks=(1, 1)) if model_name == "resnet" else {}
    plan = mt.plan(make, base=base | extra, target=target | extra, placement=placement)
    plan.save(tmp_path / "deep" / "plan.json")
    again = mt.Plan.load(tmp_path / "deep" / "plan.json")
    assert again == plan and str(again) == str(plan)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["plan.json"]
    ours, theirs = build(make, target), build(make, target)
    losses = train(ours, plan.optimizer(plan.initialize(ours), lr=1e-2), 3)
    assert losses == train(theirs, again.optimizer(again.initialize(theirs), lr=1e-2), 3)


def test_the_table_is_deterministic_and_complete() -> None:
    make = gpt_factory(vocab_size=17, context=8, head_size=8)
    one, two = (
        mt.plan(make, base=dict(width=16, depth=2), target=dict(width=64, depth=8), recipe="completep")
        for _ in range(2)
    )
    assert one == two and str(one) == str(two)
    text = str(one)
    assert all(
        word in text for word in ("head.weight", "blocks.*.mlp.down.weight", "absorbs", "lr=", "width 16, depth 2")
    )


def test_groups_are_the_distinct_settings_not_the_tensors() -> None:
    make = gpt_factory(vocab_size=17, context=8, head_size=8, bias=True)
    plan = mt.plan(make, base=dict(width=16, depth=2), target=dict(width=64, depth=4), recipe="completep")
    with torch.device("meta"):
        model = make(width=64, depth=4)
    groups = plan.groups(model, lr=1e-3)
    assert len(groups) <= 6 < 50 < sum(len(group["params"]) for group in groups)
    keys = [(group["lr"], group["weight_decay"], group["eps"]) for group in groups]
    assert len(set(keys)) == len(keys)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_overrides_set_base_values_by_pattern() -> None:
    make = mlp_factory(inputs=12, outputs=5)
    plan = mt.plan(make, base=dict(width=16), target=dict(width=64), optimizer="sgd")
    model = make(width=64)
    groups = plan.groups(
        model, lr=0.1, weight_decay=0.2, overrides={"*.bias": {"weight_decay": 0.0}, "head.*": {"lr": 0.3}}
    )
    found = {name: group for group in groups for name in group["names"]}
    assert found["layers.0.bias"]["weight_decay"] == 0.0 and found["layers.0.weight"]["weight_decay"] > 0
    assert found["head.weight"]["lr"] == pytest.approx(0.3 * plan["head.weight"].ratios.lr)
    optimizer = plan.optimizer(model, lr=0.1, overrides={"*.bias": {"momentum": 0.5}})
    assert {group["momentum"] for group in optimizer.param_groups} == {0, 0.5}


# ------------------------------------------------------------------ verify


@pytest.fixture(scope="module")
def planned():
    make = gpt_factory(vocab_size=17, context=8, head_size=8)
    return make, mt.plan(make, base=dict(width=16, depth=2), target=dict(width=64, depth=2))


def stepped(model, optimizer, scheduler=None, steps: int = 3):
    for _ in range(steps):
        train(model, optimizer, 1)
        if scheduler is not None:
            scheduler.step()


def test_verify_accepts_what_keeps_the_ratios(planned) -> None:
    make, plan = planned
    model = make(width=64, depth=2)
    optimizer = plan.optimizer(model, lr=0.01, weight_decay=0.1)
    assert plan.verify(optimizer, model) == {"lr": 0.01}
    stepped(model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)))
    assert plan.verify(optimizer, model)["lr"] == pytest.approx(0.01 / 4)
    again = plan.optimizer(model, lr=0.5)
    again.load_state_dict(optimizer.state_dict())
    assert plan.verify(again)["lr"] == pytest.approx(0.01 / 4)
    for scheduler in (
        torch.optim.lr_scheduler.CosineAnnealingLR(again, 10),
        torch.optim.lr_scheduler.LinearLR(again, 0.1, 1.0, 5),
    ):
        stepped(model, again, scheduler, 2)
        plan.verify(again)
    for group in again.param_groups:  # a schedule of the decay is one factor too
        group["weight_decay"] *= 0.5
        group["lr"] = 0.0
    assert plan.verify(again)["lr"] == 0.0


def one_cycle(plan, model, optimizer) -> None:
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10)


def cosine_to_a_floor(plan, model, optimizer) -> None:
    stepped(model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.001))


def constant_by_hand(plan, model, optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01


def decay_by_hand(plan, model, optimizer) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1


def eps_by_hand(plan, model, optimizer) -> None:
    for group in optimizer.param_groups:
        group["eps"] = 1e-8


def one_group_by_hand(plan, model, optimizer) -> None:
    optimizer.param_groups[-1]["lr"] *= 2


def nan_by_hand(plan, model, optimizer) -> None:
    optimizer.param_groups[-1]["lr"] = math.nan


@pytest.mark.parametrize(
    "damage",
    [one_cycle, cosine_to_a_floor, constant_by_hand, decay_by_hand, eps_by_hand, one_group_by_hand, nan_by_hand],
)
def test_verify_refuses_what_erases_the_ratios(planned, damage) -> None:
    make, plan = planned
    model = make(width=64, depth=2)
    optimizer = plan.optimizer(model, lr=0.01, weight_decay=0.1)
    damage(plan, model, optimizer)
    with pytest.raises(mt.PlanError, match="left the plan's ratios"):
        plan.verify(optimizer)


def test_verify_refuses_the_state_of_another_width(planned) -> None:
    make, plan = planned
    other = mt.plan(make, base=dict(width=16, depth=2), target=dict(width=32, depth=2))
    small, model = make(width=32, depth=2), make(width=64, depth=2)
    source, optimizer = other.optimizer(small, lr=0.01), plan.optimizer(model, lr=0.01)
    fresh = copy.deepcopy(source.state_dict())
    optimizer.load_state_dict(fresh)  # rates alone, before any step
    with pytest.raises(mt.PlanError, match="left the plan's ratios"):
        plan.verify(optimizer)
    train(small, source, 1)
    optimizer = plan.optimizer(model, lr=0.01)
    for group, rates in zip((saved := source.state_dict())["param_groups"], optimizer.param_groups, strict=True):
        group.update({key: rates[key] for key in ("lr", "weight_decay", "eps")})
    optimizer.load_state_dict(saved)  # moments of another shape under the right rates
    with pytest.raises(mt.PlanError, match=r"exp_avg.*another width"):
        plan.verify(optimizer)


def test_verify_names_the_missing_hook() -> None:
    make = FACTORIES["tied gpt"]
    plan = mt.plan(make, base=dict(width=16), target=dict(width=64), placement="multiplier")
    model = make(width=64)
    optimizer = plan.optimizer(model, lr=0.01)
    with pytest.raises(mt.PlanError, match=r"head.*call plan.attach"):
        plan.verify(optimizer, model)
    plan.attach(model)
    plan.attach(model)
    plan.verify(optimizer, model)
    plan.verify(optimizer, copy.deepcopy(model))
    assert len(model.head._forward_pre_hooks) == 1


def test_verify_sees_a_decay_that_the_plan_never_scaled() -> None:
    """An AdamW built by hand from groups that say nothing about decay would use the class's own, unscaled."""
    make = mlp_factory(inputs=12, outputs=5)
    facts = mt.OptimizerFacts("mine", 0, "√(in·out)", "element", None, "decoupled")  # no class, so no default decay
    plan = mt.plan(make, base=dict(width=16), target=dict(width=64), optimizer=facts)
    model = make(width=64)
    optimizer = Lion(plan.groups(model, lr=0.1), weight_decay=0.1)
    with pytest.raises(mt.PlanError, match=r"weight_decay 0\.1 where the plan gives none"):
        plan.verify(optimizer)
    with pytest.raises(mt.PlanError, match="not built from"):
        plan.verify(torch.optim.SGD(model.parameters(), lr=0.1))


# ------------------------------------------------------------------ refusals: one clear line each


def small_plan(**options):
    return mt.plan(mlp_factory(inputs=12, outputs=5), base=dict(width=16), target=dict(width=32), **options)


WRONG = {
    "unknown recipe": (lambda: small_plan(recipe="mu"), "mup"),
    "unknown placement": (lambda: small_plan(placement="inside"), "absorbed"),
    "unknown mode": (lambda: small_plan(mode="rough"), "asymptotic"),
    "unknown optimizer": (lambda: small_plan(optimizer="adamv"), "did you mean 'adam'"),
    "optimizer is a number": (lambda: small_plan(optimizer=3), "optimizer=3"),
    "a partial": (lambda: small_plan(optimizer=functools.partial(torch.optim.SGD, momentum=0.9)), "momentum=0.9"),
    "fallback on matrices": (lambda: small_plan(optimizer="muon", fallback="muon"), "adamw"),
    "negative lr": (lambda: small_plan().groups(target(), lr=-1), "lr=-1"),
    "lr is nan": (lambda: small_plan().groups(target(), lr=math.nan), "lr=nan"),
    "lr is inf": (lambda: small_plan().optimizer(target(), lr=math.inf), "lr=inf"),
    "lr is a word": (lambda: small_plan().groups(target(), lr="fast"), "lr='fast'"),
    "negative decay": (lambda: small_plan().optimizer(target(), lr=1, weight_decay=-0.1), "weight_decay=-0.1"),
    "nobody takes it": (lambda: small_plan().optimizer(target(), lr=1, momentum=0.9), "AdamW take no 'momentum'"),
    "sgd has no eps": (lambda: small_plan(optimizer="sgd").optimizer(target(), lr=1, eps=1e-8), "SGD take no 'eps'"),
    "override of nothing": (lambda: small_plan().groups(target(), 1, overrides={"*.gain": {"lr": 0.0}}), "input.weight"),
    "override is a number": (lambda: small_plan().groups(target(), 1, overrides={"*.bias": 0.0}), "weight_decay"),
    "override misspelt": (lambda: small_plan().optimizer(target(), 1, overrides={"*.bias": {"wd": 0.0}}), "wd=0.0"),
    "override negative": (lambda: small_plan().groups(target(), 1, overrides={"*.bias": {"lr": -1}}), "lr=-1"),
    "the base model": (lambda: small_plan().initialize(target(width=16)), "this is its base"),
    "a third width": (lambda: small_plan().groups(target(width=64), lr=1), r"\(64, 12\)"),
    "another model": (lambda: small_plan().initialize(nn.Linear(4, 4)), "not in the plan"),
    "part of the model": (lambda: small_plan().groups(nn.ModuleDict(dict(input=nn.Linear(12, 32))), lr=1), "lacks"),
    "clip at zero": (lambda: small_plan().clip_grad_norm_(target(), 0.0), "max_norm=0.0"),
    "no such tensor": (lambda: small_plan()["wte.weight"], "wte.weight"),
    "same shapes": (lambda: mt.plan(lambda width: nn.Linear(3, 3), base=dict(width=1), target=dict(width=2)), "same shapes"),
    "factory fails": (lambda: mt.plan(mlp_factory(), base=dict(width=-1), target=dict(width=2)), "width=-1"),
    "factory raises": (lambda: mt.plan(lambda width: nn.Linear(width, -1), base=dict(width=1), target=dict(width=2)), "width"),
    "factory returns None": (lambda: mt.plan(lambda width: None, base=dict(width=1), target=dict(width=2)), "NoneType"),
    "wrong keyword": (lambda: mt.plan(lambda width: nn.Linear(1, width), base=dict(wide=1), target=dict(wide=2)), "wide"),
    "no target": (lambda: mt.plan(mlp_factory(), base=dict(width=8)), "target"),
    "target beside a module": (lambda: mt.plan(target(), base=target(16), target=dict(width=2)), "leave target out"),
    "base is a dict": (lambda: mt.plan(target(), base=dict(width=2)), "base_model"),
    "missing file": (lambda: mt.Plan.load("/nowhere/plan.json"), "/nowhere/plan.json"),
    "unwritable": (lambda: small_plan().save("/proc/plan.json"), "/proc/plan.json"),
    "rprop": (lambda: small_plan(optimizer=torch.optim.Rprop), "cannot be transferred"),
    "adadelta": (lambda: small_plan(optimizer=torch.optim.Adadelta), "cannot be transferred"),
    "hidden depth": (lambda: mt.plan(lambda width, n_layers: nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)),
                     base=dict(width=4, n_layers=2), target=dict(width=8, n_layers=4), recipe="completep"), "n_layers=2 → 4"),
    "no model": (lambda: small_plan().groups(None, lr=1), "NoneType is no model"),
    "parameters for a model": (lambda: small_plan().groups(list(target().parameters()), lr=1), "list is no model"),
    "initialize nothing": (lambda: small_plan().initialize(None), "no model"),
    "attach to nothing": (lambda: small_plan().attach(None), "no model"),
    "a seed is a word": (lambda: small_plan().initialize(target(), seed="a"), "seed='a'"),
    "verify nothing": (lambda: small_plan().verify(None), "no optimizer"),
    "verify the model first": (lambda: small_plan().verify(target(), None), "MLP, no optimizer"),
    "no lr": (lambda: small_plan().groups(target(), lr=None), "lr=None"),
    "no lr by an override": (lambda: small_plan().groups(target(), 1, overrides={"*.bias": {"lr": None}}), "lr=None"),
    "lr as digits": (lambda: small_plan().groups(target(), lr="0.1"), "lr='0.1'"),
    "overrides are a list": (lambda: small_plan().groups(target(), 1, overrides=["*.bias"]), "weight_decay"),
    "overrides of an optimizer are a list": (lambda: small_plan().optimizer(target(), 1, overrides=["*.bias"]), "weight_decay"),
    "clip at a word": (lambda: small_plan().clip_grad_norm_(target(), "1"), "max_norm='1'"),
    "betas": (lambda: small_plan().optimizer(target(), lr=1, betas=(2, 3)), r"AdamW refuses .*betas=\(2, 3\)"),
    "declared by numbers": (lambda: mt.register_optimizer(3, 4), r"register_optimizer\(3, 4\)"),
    "no optimizer": (lambda: small_plan(optimizer=""), "optimizer='': name an optimizer"),
    "from a list": (lambda: mt.Plan.from_dict([1]), "not a plan: a list"),
    "load nothing": (lambda: mt.Plan.load(None), "path=None"),
    "save to nothing": (lambda: small_plan().save(None), "path=None"),
    "save to a folder": (lambda: small_plan().save("."), "is a folder; give a file"),
    "head size is a number": (lambda: small_plan(head_size=3), r"head_size=\(base, target\)"),
    "head sizes are words": (lambda: small_plan(head_size=("a", "b")), r"head_size=\(base, target\)"),
    "branch_out of nothing": (lambda: small_plan(branch_out="layers.*.out"), r"branch_out='layers\.\*\.out' matches no module"),
    "branch_out is a number": (lambda: small_plan(branch_out=3), "branch_out=3"),
    "axes are a list": (lambda: small_plan(axes=["in"]), r"axes=\['in'\]"),
    "roles are a word": (lambda: small_plan(roles="hidden"), "roles='hidden'"),
    "lbfgs": (lambda: small_plan(optimizer=torch.optim.LBFGS), "line search"),
    "asgd": (lambda: small_plan(optimizer="ASGD"), "cannot be transferred"),
}  # fmt: skip


def target(width: int = 32) -> nn.Module:
    return mlp_factory(inputs=12, outputs=5)(width=width)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(case: str) -> None:
    call, expected = WRONG[case]
    with pytest.raises(InputError, match=expected) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_malformed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    good = small_plan().to_dict()
    first = good["rows"][0]
    for text in (
        "", "{", "[]", "3", "{}", json.dumps({**good, "version": 0}), json.dumps({**good, "rows": 3}), json.dumps({**good, "more": 1}),
        json.dumps({**good, "rows": [dict(first, ratios={})]}), json.dumps({**good, "rows": ["x"]}), json.dumps({**good, "hooks": None}),
        json.dumps({**good, "rows": [dict(first, ratios=dict(first["ratios"], lr="x"))]}), json.dumps({**good, "depth": "x"}),
        json.dumps({**good, "rows": [dict(first, target_shape=["x"])]}), json.dumps({**good, "notes": [3]}),
        json.dumps({**good, "rows": [dict(first, base_law=dict(first["base_law"], kind="x"))]}), json.dumps({**good, "base": 3}),
        json.dumps({**good, "rows": [dict(first, ratios=dict(first["ratios"], std=math.nan))]}),
        json.dumps({**good, "facts": {"a": {"name": "a"}}}), json.dumps({k: v for k, v in good.items() if k != "rows"}),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError, match="plan") as caught:
            mt.Plan.load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a plan"):
        mt.Plan.load(path)


def test_a_refused_plan_leaves_the_model_as_it_was() -> None:
    plan = small_plan()
    model = target(width=64)
    before = values(model)
    with pytest.raises(mt.PlanError):
        plan.initialize(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        small_plan().save(tmp_path / "file" / "plan.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        small_plan().save(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"] and not list(
        (tmp_path / "folder").iterdir()
    )


# ------------------------------------------------------------------ wrappers and copies


def test_a_plan_holds_for_copies_compiled_and_wrapped_models() -> None:
    """Names that torch.compile and DDP put before a parameter's own do not matter."""
    make = FACTORIES["tied gpt"]
    plan = mt.plan(make, base=dict(width=16), target=dict(width=64), placement="multiplier")
    model = plan.initialize(make(width=64), seed=0)
    want = plan.groups(model, lr=0.1)
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model), copy.deepcopy(model)):
        found = plan.groups(wrapped, lr=0.1)
        assert [(g["names"], g["lr"]) for g in found] == [(g["names"], g["lr"]) for g in want]
        plan.verify(plan.optimizer(wrapped, lr=0.1), wrapped)
    late = nn.DataParallel(make(width=64))
    plan.attach(late)
    assert len(late.module.head._forward_pre_hooks) == 1


def test_a_model_whose_own_first_name_is_module_is_not_taken_for_a_wrapper() -> None:
    def make(width: int) -> nn.Module:
        return nn.ModuleDict(dict(module=nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))))

    plan = mt.plan(make, base=dict(width=8), target=dict(width=16))
    assert plan.groups(make(16), lr=0.1) and plan.initialize(make(16)) is not None


# ------------------------------------------------------------------ cost


def test_a_large_plan_takes_little_memory_and_imports_nothing_heavy() -> None:
    """A 48-layer, width-2048 GPT (2.4 B parameters); benchmarks/plan_cost.py has its seconds."""
    script = """
import resource, sys
import mutransfer as mt
from mutransfer.models import gpt_factory
make = gpt_factory(vocab_size=50304, context=1024)
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = rss()
plan = mt.plan(make, base=dict(width=256, depth=48), target=dict(width=2048, depth=48), recipe="completep")
grown = (rss() - before) / (2**20 if sys.platform == "darwin" else 2**10)
heavy = [name for name in ("sympy", "matplotlib", "scipy", "torch._dynamo", "torch._inductor") if name in sys.modules]
print(grown, len(plan.rows), *heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    megabytes, rows, *heavy = done.stdout.split()
    assert float(megabytes) < 100 and int(rows) == 48 * 8 + 4
    assert heavy == []


def test_ratios_of_a_plan_are_data() -> None:
    plan = small_plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.recipe = "sp"  # type: ignore[misc]  # the claim under test
    assert hash(plan.rows[0]) == hash(small_plan().rows[0])
