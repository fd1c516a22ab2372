"""Classes of the packages: recognised by what their own code does, run under the settings their facts need, refused in one line."""

import builtins
import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.models import MLPConfig, gpt_factory, mlp_factory
from mutransfer.optimizers import REGISTRY, facts_for, optimizer_class
from mutransfer.optimizers.classes import KNOWN, RUNNERS, known_class
from mutransfer.train import train
from mutransfer.train.config import RunConfig
from tests.plan_cases import train as train_steps

po: Any = pytest.importorskip("pytorch_optimizer")
schedulefree: Any = pytest.importorskip("schedulefree")
GPT = gpt_factory(vocab_size=17, context=8, head_size=8, bias=True)
MLP = mlp_factory(inputs=12, outputs=5)
GROWN = dict(base=dict(width=16), target=dict(width=64))


def planned(optimizer: Any, make: Any = GPT, **sizes: Any) -> tuple[mt.Plan, nn.Module]:
    plan = mt.plan(make, **(GROWN | sizes), optimizer=optimizer)
    return plan, plan.initialize(make(**(sizes.get("target") or GROWN["target"])))


@pytest.mark.parametrize("name", RUNNERS)
def test_every_packaged_optimizer_trains_verifies_and_resumes(name: str) -> None:
    if name == "sophia":
        pytest.skip("needs backward(create_graph=True)")
    plan, model = planned(name)
    optimizer = plan.optimizer(model, lr=0.01, weight_decay=0.1)
    losses = train_steps(model, optimizer, 4)
    plan.verify(optimizer, model)
    assert len(set(losses)) == 4
    again = plan.initialize(GPT(**GROWN["target"]))
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    other = plan.optimizer(again, lr=0.01, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train_steps(again, other, 3) == train_steps(model, optimizer, 3)


GIVEN = {
    "pytorch_optimizer.Lion": (lambda: po.Lion, "lion"),
    "pytorch_optimizer.AdEMAMix": (lambda: po.AdEMAMix, "ademamix"),
    "pytorch_optimizer.ScheduleFreeAdamW": (lambda: po.ScheduleFreeAdamW, "schedule-free-adamw"),
    "pytorch_optimizer.Shampoo": (lambda: po.Shampoo, "shampoo"),
    "pytorch_optimizer.SCION": (lambda: po.SCION, "scion"),
    "pytorch_optimizer.SophiaH": (lambda: po.SophiaH, "sophia"),
    "schedulefree.AdamWScheduleFree": (lambda: schedulefree.AdamWScheduleFree, "schedule-free-adamw"),
    "torch.optim.Adafactor": (lambda: torch.optim.Adafactor, "adafactor"),
}


@pytest.mark.parametrize("case", GIVEN)
def test_a_class_of_a_package_has_the_facts_of_its_code(case: str) -> None:
    cls, name = GIVEN[case][0](), GIVEN[case][1]
    assert facts_for(cls) == REGISTRY[name]
    plan, model = planned(cls)
    optimizer = plan.optimizer(model, lr=0.01, weight_decay=0.1)
    parts = getattr(optimizer, "parts", [optimizer])
    assert type(parts[-1] if case.endswith(("Shampoo", "SCION")) and type(parts[0]) is not cls else parts[0]) is cls
    plan.verify(optimizer)


def named_class(name: str, module: str, **defaults: Any) -> Any:
    """A class as another package would define it; the packages themselves are not installed."""

    def init(self: Any, params: Any, lr: float = 1e-3, **given: Any) -> None:
        torch.optim.Optimizer.__init__(self, params, dict(lr=lr) | defaults | given)

    return type(name, (torch.optim.Optimizer,), {"__init__": init, "__module__": module})


@pytest.mark.parametrize("module", ["lion_pytorch.lion_pytorch", "timm.optim.lion", "my_code"])
def test_lion_is_lion_wherever_it_comes_from(module: str) -> None:
    cls = named_class("Lion", module, weight_decay=0.0)
    assert facts_for(cls) == facts_for(cls([nn.Parameter(torch.zeros(1))])) == REGISTRY["lion"]


def test_what_an_instance_was_told_decides_its_decay() -> None:
    p = [nn.Parameter(torch.zeros(2, 2))]
    assert facts_for(po.AdEMAMix(p)).decay == "coupled" and facts_for(po.AdEMAMix).decay == "decoupled"
    assert facts_for(po.Lion(p, weight_decouple=False)).decay == "coupled"
    plan, model = planned(po.AdEMAMix(p))
    made = plan.optimizer(model, lr=0.01, weight_decay=0.1)
    assert {group["weight_decouple"] for group in made.param_groups} == {False}
    plan, model = planned(po.AdEMAMix)
    own = po.AdEMAMix(
        plan.groups(model, lr=0.01, weight_decay=0.1)
    )  # its own default is coupled decay: the groups say otherwise
    assert {group["weight_decouple"] for group in own.param_groups} == {True}
    heavy = named_class("RMSprop", "heavyball")
    assert facts_for(heavy).decay == "decoupled" and facts_for(torch.optim.RMSprop).decay == "coupled"


WRONG: dict[str, tuple[Any, str]] = {
    "Lamb's clamp": (lambda: facts_for(po.Lamb), "clamps ‖W‖_F at 10.*optimizer='lamb'"),
    "AdaFactor's decay": (lambda: facts_for(po.AdaFactor), "torch.optim.Adafactor"),
    "grafting": (lambda: facts_for(po.ScalableShampoo), "grafting"),
    "two in one class": (lambda: facts_for(po.Muon), "optimizer='muon'"),
    "timm's Lamb": (lambda: facts_for(named_class("Lamb", "timm.optim.lamb")), "timm.optim.lamb.Lamb.*probe_optimizer"),
    "anyone's Adafactor": (lambda: facts_for(named_class("Adafactor", "fairseq.optim")), "fairseq.optim.Adafactor"),
    "transformers' Adafactor": (
        lambda: facts_for(named_class("Adafactor", "transformers.optimization")),
        "torch.optim.Adafactor",
    ),
    "heavyball's Scion": (lambda: facts_for(named_class("Scion", "heavyball")), "its own initialisation"),
    "momentum in Shampoo": (lambda: optimized("shampoo", momentum=0.9), r"momentum=0\.9.*momentum=0\.0"),
    "fixed decay": (lambda: optimized("lion", fixed_decay=True), "fixed_decay=True"),
    "coupled against the plan": (lambda: optimized("lion", weight_decouple=False), "decay is decoupled"),
    "SCION on a ball": (lambda: optimized("scion", constraint=True), "constraint=True"),
    "an instance on a ball": (
        lambda: facts_for(po.SCION([nn.Parameter(torch.zeros(2, 2))], constraint=True)),
        "constraint",
    ),
    "fixed in an override": (lambda: optimized("lion", overrides={"*": {"fixed_decay": True}}), "fixed_decay=True"),
    "Sophia in a run": (lambda: run("sophia"), "Hessian"),
    "cosine without a schedule": (lambda: run("schedule-free-adamw", schedule="cosine"), "schedule='constant'"),
}


def optimized(name: str, **settings: Any) -> Any:
    plan, model = planned(name)
    return plan.optimizer(model, lr=0.01, **settings)


def run(name: str, **options: Any) -> RunConfig:
    return RunConfig(
        model=MLPConfig(width=32, inputs=64, outputs=10), base=dict(width=16), data="digits", optimizer=name, steps=12, warmup=2,
        batch=16, lr=0.01, val_batches=1, **options,
    )  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_follow_its_facts_is_refused_in_one_line(case: str) -> None:
    call, expected = WRONG[case]
    with pytest.raises(InputError, match=expected) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RUNNERS)
def test_a_missing_package_gives_the_pip_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, real = RUNNERS[name][0], builtins.__import__

    def absent(module: str, *rest: Any) -> Any:
        if module.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(module, *rest)

    def no_module(module: str, *rest: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(importlib, "import_module", no_module)
    with pytest.raises(InputError, match=r"pip install 'mutransfer\[optimizers\]'") as caught:
        optimizer_class(name)
    assert package in str(caught.value) and "\n" not in str(caught.value)
    assert optimizer_class(name, required=False) is None
    assert mt.plan(MLP, **GROWN, optimizer=name)["head.weight"].optimizer  # the plan and its groups need no class
    plan = mt.plan(MLP, **GROWN, optimizer=name)
    assert plan.groups(MLP(**GROWN["target"]), lr=0.1)


def test_the_packages_hold_the_classes_that_are_spoken_of() -> None:
    for known in KNOWN:
        if known.package in ("pytorch_optimizer", "schedulefree", "torch"):
            module: Any = importlib.import_module("torch.optim" if known.package == "torch" else known.package)
            assert known_class(getattr(module, known.name)) is known
        assert known.facts in REGISTRY


def test_adafactor_has_both_eps_in_its_groups_and_a_floor_that_follows_the_init() -> None:
    plan, model = planned("adafactor")
    made = plan.optimizer(model, lr=0.01, eps=1e-12)
    eps = {name: group["eps"] for group in made.param_groups for name in group["names"]}
    for name, pair in eps.items():
        ratios = plan[name].ratios
        assert ratios.eps is not None and pair == pytest.approx((1e-12 * ratios.eps, 1e-3 * ratios.std))
    assert len({pair for pair in eps.values()}) > 1


def test_lamb_takes_plain_steps_where_a_tensor_starts_at_zero() -> None:
    """A bias has no ‖W‖: its trust ratio is kept at 1, and its learning rate is that of q = 0."""
    plan, model = planned("lamb", target=dict(width=64))
    kept = {name: group.get("adam", False) for group in plan.groups(model, lr=0.1) for name in group["names"]}
    zero = {row.name for row in plan.rows if row.base_law.zeros}
    assert zero and {name for name, value in kept.items() if value} == zero
    deep = mt.plan(
        GPT, base=dict(width=16, depth=2), target=dict(width=16, depth=8), optimizer="lamb", recipe="completep"
    )
    assert deep["blocks.0.mlp.down.weight"].ratios.lr == 1.0  # the gauge does not move an LR that follows the weights
    assert deep["blocks.0.mlp.down.bias"].ratios.lr == pytest.approx(1 / 4)


@pytest.mark.parametrize("name", ["lamb", "adafactor", "schedule-free-adamw", "shampoo", "ademamix", "scion"])
def test_a_run_trains_with_it(name: str) -> None:
    result = train(run(name, schedule="constant"))
    assert result.status == "finished" and result.losses[-1] < result.losses[0]


def test_a_finished_schedule_free_run_leaves_the_averaged_model(tmp_path: Any) -> None:
    """Validation and the final checkpoint are at the average; a run that is interrupted goes on bit for bit."""
    config = run("schedule-free-adamw", schedule="constant")
    whole = train(config, folder=tmp_path / "whole")
    saved = torch.load(next((tmp_path / "whole").glob("*.pt")), weights_only=False)
    assert not any(group["train_mode"] for group in saved["optimizer"]["param_groups"])
    train(config, folder=tmp_path / "halves", until=5)
    assert train(config, folder=tmp_path / "halves").losses == whole.losses
