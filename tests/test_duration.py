"""Batch and training length: the rules against the papers' formulas, their invariants, and the physics that they come from."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.cli import main
from mutransfer.duration import RULES, Duration
from mutransfer.models import mlp_factory
from mutransfer.optimizers import REGISTRY, facts_for
from mutransfer.step_rules import STEP_RULES, StepRule, register_rule
from mutransfer.train import RunConfig
from tests.plan_cases import Lion

MAKE = mlp_factory(inputs=12, outputs=5, depth=2)
SIZES: dict[str, Any] = dict(base=dict(width=16), target=dict(width=64))
RATIOS = [(1.0, 1.0), (4.0, 1.0), (8.0, 20.0), (1.0, 16.0), (0.5, 1.0), (4.0, 4.0)]


def duration(rule: str, m_b: float, m_d: float, optimizer: str = "adamw", facts: Any = None) -> Duration:
    """The duration of one optimizer, from base (1, 1)."""
    made = Duration.of(rule, (1, m_b), (1, m_d), None, {optimizer: facts or facts_for(optimizer)})
    assert made is not None
    return made


# ---------------------------------------------------------------- the formulas


@pytest.mark.parametrize(("m_b", "m_d"), RATIOS)
def test_completed_p_for_adamw_reads_as_it_is_quoted(m_b: float, m_d: float) -> None:
    """2512.22382: lr √(m_B/m_D), eps √(m_D/m_B); decay √(m_B/m_D) and 1 − β times m_B/m_D by the same T."""
    made = duration("completed-p", m_b, m_d)
    found = made.factors("adamw", {}, coupled=False)
    assert found["lr"] == pytest.approx(math.sqrt(m_b / m_d), rel=1e-12)
    assert found["weight_decay"] == pytest.approx(math.sqrt(m_b / m_d), rel=1e-12)
    assert found["eps"] == pytest.approx(math.sqrt(m_d / m_b), rel=1e-12)
    betas = made.remembered("adamw", {"betas": (0.95, 0.995)})["betas"]
    assert betas == pytest.approx((1 - 0.05 * m_b / m_d, 1 - 0.005 * m_b / m_d), rel=1e-12)


@pytest.mark.parametrize(("m_b", "m_d"), RATIOS)
def test_the_square_root_rule_for_adam_reads_as_in_the_paper(m_b: float, m_d: float) -> None:
    """2205.10287: lr √κ, eps 1/√κ, 1 − β times κ, whatever the length; decay by lr·decay·steps (2405.13698) under `ema`."""
    for rule in ("sde", "ema"):
        made = duration(rule, m_b, m_d)
        found = made.factors("adamw", {}, coupled=False)
        assert (found["lr"], found["eps"]) == pytest.approx((math.sqrt(m_b), 1 / math.sqrt(m_b)), rel=1e-12)
        assert found["weight_decay"] == pytest.approx(math.sqrt(m_b) / (m_d if rule == "ema" else 1), rel=1e-12)
        assert made.remembered("adamw", {"betas": (0.9,)})["betas"][0] == pytest.approx(1 - 0.1 * m_b, rel=1e-12)


@pytest.mark.parametrize("m_b", [0.5, 2.0, 4.0])
def test_sgd_follows_the_linear_rule_and_its_momentum_the_same_tokens(m_b: float) -> None:
    """lr/(1 − μ), the gain of torch's summed momentum, is linear in the batch; L2 is part of the loss and stays."""
    made = duration("sde", m_b, 1.0, "sgd")
    plain = made.factors("sgd", {"momentum": 0.0}, coupled=True)
    assert (plain["lr"], plain["weight_decay"]) == (m_b, 1.0)
    heavy = made.factors("sgd", {"momentum": 0.9}, coupled=True)
    momentum = made.remembered("sgd", {"momentum": 0.9})["momentum"]
    assert heavy["lr"] / (1 - momentum) == pytest.approx(m_b / (1 - 0.9), rel=1e-12)
    assert (1 - momentum) / m_b == pytest.approx(1 - 0.9, rel=1e-12)
    assert made.remembered("sgd", {"momentum": 0.0}) == {"momentum": 0.0}


DECOUPLED = ["adamw", "lion", "sign", "muon", "muon-kimi", "shampoo"]


@pytest.mark.parametrize("optimizer", DECOUPLED)
@pytest.mark.parametrize(("m_b", "m_d"), RATIOS)
def test_weights_average_over_the_same_tokens_or_the_same_share_of_the_run(
    optimizer: str, m_b: float, m_d: float
) -> None:
    """1/(lr·decay) steps: in tokens under `sde`, as a share of all steps under `completed-p` and `ema`."""
    for rule in RULES:
        found = duration(rule, m_b, m_d, optimizer).factors(optimizer, {}, coupled=False)
        timescale = 1 / (found["lr"] * found["weight_decay"])
        per = timescale * m_b if rule == "sde" else timescale / (m_d / m_b)
        assert per == pytest.approx(1.0, rel=1e-12), rule


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop", "adagrad", "lion", "muon", "shampoo"])
def test_two_changes_one_after_the_other_are_one(rule: str, optimizer: str) -> None:
    """Every ratio is a power: derive(r1·r2) = derive(r1)·derive(r2), betas included."""
    base = {"betas": (0.98, 0.999), "momentum": 0.98, "alpha": 0.995}
    for (b1, d1), (b2, d2) in itertools.combinations(RATIOS, 2):
        first, second = duration(rule, b1, d1, optimizer), duration(rule, b2, d2, optimizer)
        both = duration(rule, b1 * b2, d1 * d2, optimizer)
        factors = [made.factors(optimizer, base, coupled=False) for made in (first, second, both)]
        for key, value in factors[2].items():
            assert value == pytest.approx(factors[0][key] * factors[1][key], rel=1e-9)
        middle = first.remembered(optimizer, base)
        for key, value in both.remembered(optimizer, base).items():
            assert second.remembered(optimizer, middle)[key] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop", Lion])
def test_ratio_one_changes_no_bit(rule: str, optimizer: Any) -> None:
    """The same lr, decay, eps and betas, bit for bit, as a plan that knows nothing of batch and length."""
    plain = mt.plan(MAKE, **SIZES, optimizer=optimizer)
    same = mt.plan(MAKE, **SIZES, optimizer=optimizer, batch=(3, 3), tokens=(7e9, 7e9), duration=rule)
    model = MAKE(width=64)
    given: dict[str, Any] = {"sgd": {"momentum": 0.93}, "rmsprop": {"alpha": 0.87, "momentum": 0.93}}.get(
        str(optimizer), {"betas": (0.87, 0.93)} if optimizer in ("adam", "adamw") else {}
    )
    for one, two in zip(
        plain.optimizer(model, lr=0.011, weight_decay=0.07, **given).param_groups,
        same.optimizer(model, lr=0.011, weight_decay=0.07, **given).param_groups,
        strict=True,
    ):
        for key in ("lr", "weight_decay", "eps", *given):
            assert one.get(key) == two.get(key)
    assert same.duration is not None and same.duration.identity


# ---------------------------------------------------------------- the physics

CURVES = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
KAPPA, STEPS, BATCH, NOISE = 4, 600, 4, 8.0


class Replicas(nn.Module):
    """Many copies of one noisy quadratic `½ Σ h·w²`: an element-wise optimizer runs them all at once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count, 4, dtype=torch.float64))


class Sign(torch.optim.Optimizer):
    """`W ← W − lr·sign(G)`."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad.sign(), alpha=-group["lr"])


def losses(make: Callable[[Replicas], torch.optim.Optimizer], batch: int, steps: int, count: int = 6000) -> Tensor:
    """Mean and standard deviation of the loss over replicas, half-way and at the end. The noise is ∝ 1/√batch."""
    model, g = Replicas(count), torch.Generator().manual_seed(batch + steps)
    optimizer, found = make(model), []
    for step in range(1, steps + 1):
        w = model.weight.detach()
        noise = torch.randn(w.shape, generator=g, dtype=w.dtype)
        model.weight.grad = CURVES * w + NOISE / math.sqrt(batch) * noise
        optimizer.step()
        if step in (steps // 2, steps):
            loss = (0.5 * CURVES * model.weight.detach() ** 2).sum(1)
            found += [loss.mean(), loss.std()]
    return torch.stack(found)


def differ(one: Tensor, other: Tensor) -> float:
    """The largest relative difference of the four numbers."""
    return float((one / other - 1).abs().max())


def optimizer_at(
    optimizer: Any, rule: str, batch: tuple[float, float], tokens: tuple[float, float], settings: Mapping[str, Any]
) -> Callable[[Replicas], torch.optim.Optimizer]:
    """The optimizer that a plan makes of the base's settings, the model being the same at base and target."""

    def make(model: Replicas) -> torch.optim.Optimizer:
        plan = mt.plan(
            model, base=Replicas(len(model.weight)), optimizer=optimizer, batch=batch, tokens=tokens, duration=rule
        )
        made = plan.optimizer(model, **settings)
        plan.verify(made)
        return made

    return make


ADAMW: dict[str, Any] = dict(lr=0.02, betas=(0.97, 0.997), eps=3.0, weight_decay=0.1)


@pytest.fixture(scope="module")
def small_batch() -> Tensor:
    """AdamW at the base's batch: eps beside √v, decay and both memories all matter to this run."""
    return losses(lambda model: torch.optim.AdamW(model.parameters(), **ADAMW), BATCH, STEPS)


@pytest.mark.parametrize("rule", ["sde", "ema", "completed-p"])
def test_adamw_at_four_times_the_batch_draws_the_same_distribution(small_batch: Tensor, rule: str) -> None:
    """Mean and spread of the loss agree, at equal tokens, in a quarter of the steps: the rules agree where m_D = 1."""
    make = optimizer_at("adamw", rule, (1, KAPPA), (1, 1), ADAMW)
    assert differ(losses(make, KAPPA * BATCH, STEPS // KAPPA), small_batch) < 0.06


@pytest.mark.parametrize("left_out", ["lr", "betas", "eps", "weight_decay", "everything"])
def test_each_part_of_the_rule_is_needed(small_batch: Tensor, left_out: str) -> None:
    """With any one of the four settings as at the base, the distributions differ."""

    def make(model: Replicas) -> torch.optim.Optimizer:
        made = optimizer_at("adamw", "sde", (1, KAPPA), (1, 1), ADAMW)(model)
        for key in ADAMW if left_out == "everything" else [left_out]:
            made.param_groups[0][key] = ADAMW[key]
        return made

    assert differ(losses(make, KAPPA * BATCH, STEPS // KAPPA), small_batch) > 0.3


def test_a_longer_run_is_the_same_run_in_finer_steps() -> None:
    """Completed-P: κ times the tokens at the same batch is distributed as κ times the batch in the base's steps and settings."""
    coarse: dict[str, Any] = dict(lr=0.04, betas=(0.88, 0.988), eps=1.5, weight_decay=0.2)
    wide = losses(lambda model: torch.optim.AdamW(model.parameters(), **coarse), KAPPA * BATCH, STEPS // KAPPA)
    long = losses(optimizer_at("adamw", "completed-p", (1, 1), (1, KAPPA), coarse), BATCH, STEPS)
    assert differ(long, wide) < 0.06
    kept = losses(lambda model: torch.optim.AdamW(model.parameters(), **coarse), BATCH, STEPS)
    assert differ(kept, wide) > 0.3


def test_sgd_momentum_keeps_its_tokens() -> None:
    """lr/(1 − μ) linear and 1 − μ linear agree; the linear rule with μ kept does not where momentum is long."""
    base: dict[str, Any] = dict(lr=0.0002, momentum=0.975)
    small = losses(lambda model: torch.optim.SGD(model.parameters(), **base), BATCH, STEPS)
    large = losses(optimizer_at("sgd", "sde", (1, KAPPA), (1, 1), base), KAPPA * BATCH, STEPS // KAPPA)
    assert differ(large, small) < 0.06
    kept = losses(lambda m: torch.optim.SGD(m.parameters(), 0.0002 * KAPPA, 0.975), KAPPA * BATCH, STEPS // KAPPA)
    assert differ(kept, small) > 0.3


def test_a_sign_takes_the_square_root() -> None:
    """Below the noise a sign's step is the gradient over its noise: √κ agrees, neither 1 nor κ does."""
    small = losses(lambda model: Sign(model.parameters(), 0.02), BATCH, STEPS)
    found = {
        factor: differ(losses(lambda m, f=factor: Sign(m.parameters(), 0.02 * f), KAPPA * BATCH, STEPS // KAPPA), small)
        for factor in (1, math.sqrt(KAPPA), KAPPA)
    }
    rule = duration("sde", KAPPA, 1, "sign").factors("sign", {}, coupled=False)["lr"]
    assert found.pop(rule) < 0.06
    assert min(found.values()) > 0.3


def test_a_polar_factor_takes_the_square_root() -> None:
    """Muon's step on noisy matrices: below the noise, with a short memory, signal and spread agree at √κ, not at 1 nor at κ."""

    def path(lr: float, batch: int, steps: int) -> Tensor:
        g, found = torch.Generator().manual_seed(batch), []
        w = 0.5 * torch.eye(12, dtype=torch.float64).repeat(8, 1, 1)
        m = torch.zeros_like(w)
        for step in range(1, steps + 1):
            m = 0.5 * m + w + torch.randn(w.shape, generator=g, dtype=w.dtype) / math.sqrt(batch)
            u, _, v = torch.linalg.svd(m)
            w = w - lr * u @ v
            if step in (steps // 2, steps):
                found += [w.diagonal(dim1=1, dim2=2).mean(), w.std()]
        return torch.stack(found)

    small = path(0.01, 1, 400)
    rule = duration("sde", KAPPA, 1, "muon").factors("muon", {}, coupled=False)["lr"]
    found = {f: differ(path(0.01 * f, KAPPA, 400 // KAPPA), small) for f in (1, math.sqrt(KAPPA), KAPPA)}
    assert found.pop(rule) < 0.1
    assert min(found.values()) > 0.5


# ---------------------------------------------------------------- in a plan


def longer(**options: Any) -> mt.Plan:
    """A plan in width, batch and tokens."""
    return mt.plan(MAKE, **SIZES, **{"batch": (256, 2048), "tokens": (1e9, 2e10), "duration": "completed-p", **options})


def test_size_and_duration_multiply() -> None:
    """Every group has the plan's own ratio times the duration's."""
    short, long, model = mt.plan(MAKE, **SIZES), longer(), MAKE(width=64)
    given: dict[str, Any] = dict(lr=0.01, weight_decay=0.1, eps=1e-8)
    for one, two in zip(short.groups(model, **given), long.groups(model, **given, betas=(0.9, 0.95)), strict=True):
        assert two["lr"] == pytest.approx(one["lr"] * math.sqrt(0.4))
        assert two["weight_decay"] == pytest.approx(one["weight_decay"] * math.sqrt(0.4))
        assert two["eps"] == pytest.approx(one["eps"] / math.sqrt(0.4))
        assert two["betas"] == pytest.approx((1 - 0.1 * 0.4, 1 - 0.05 * 0.4))
    made = long.optimizer(model, lr=0.01)  # the class's own betas are the base's
    assert made.param_groups[0]["betas"] == pytest.approx((1 - 0.1 * 0.4, 1 - 0.001 * 0.4))
    assert long.verify(made) == {"lr": pytest.approx(0.01)}


def test_steps_say_the_same_as_tokens() -> None:
    """tokens = batch · steps; and a batch alone means equal tokens."""
    by_steps = longer(tokens=None, steps=(1000, 2500)).duration
    assert by_steps is not None and by_steps.steps_ratio == 2.5 and by_steps.tokens_ratio == 20
    alone = longer(tokens=None).duration
    assert alone is not None and alone.tokens_ratio == 1 and alone.steps_ratio == 1 / 8


def test_overrides_give_other_base_memories() -> None:
    """A pattern's betas are the base's, and follow too."""
    plan, model = longer(), MAKE(width=64)
    made = plan.optimizer(model, lr=0.01, overrides={"*.bias": {"betas": (0.5, 0.9)}})  # pyright: ignore[reportArgumentType]
    found = {name: group["betas"] for group in made.param_groups for name in group["names"]}
    bias = next(name for name in found if name.endswith("bias"))
    assert found[bias] == pytest.approx((0.8, 0.96))
    assert found[bias.replace("bias", "weight")] == pytest.approx((0.96, 0.9996))
    plan.verify(made)


def test_mixes_follow_each_by_its_own_rule() -> None:
    """Muon's lr and decay follow and its momentum is kept, AdamW's betas follow."""
    mixed: dict[str, Any] = dict(batch=(1, 4), tokens=None, duration="sde")
    plan, plain = longer(optimizer="muon", **mixed), mt.plan(MAKE, **SIZES, optimizer="muon")
    model = MAKE(width=64)
    for one, two in zip(
        plain.groups(model, lr=0.01, weight_decay=0.1),
        plan.groups(model, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95)),
        strict=True,
    ):
        assert two["lr"] == pytest.approx(2 * one["lr"])
        assert two["weight_decay"] == pytest.approx(2 * one["weight_decay"])
        assert two.get("betas") == (pytest.approx((0.6, 0.8)) if one["optimizer"] == "adamw" else None)


@pytest.mark.parametrize("rule", RULES)
def test_json_round_trip(rule: str) -> None:
    """A plan with a duration reads back equal; one without writes what it always wrote."""
    plan = longer(duration=rule, optimizer="sgd")
    assert mt.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert not plan.identity
    plain = mt.plan(MAKE, **SIZES)
    assert "duration" not in plain.to_dict()
    assert mt.Plan.from_dict(plain.to_dict()).duration is None
    broken = plan.to_dict()
    broken["duration"]["rule"] = "linear"
    with pytest.raises(mt.InputError, match="linear"):
        mt.Plan.from_dict(broken)


def test_the_table_prints_every_factor_with_its_formula(capsys: pytest.CaptureFixture[str]) -> None:
    """The rule, both ratios, T, each factor and its source, and that it is an option and uncertain."""
    code = main(
        ["plan", "mlp", "--base", "width=16", "--target", "width=64", "--batch", "256", "2048", "--tokens", "1e9", "2e10",
         "--duration", "completed-p"]
    )  # fmt: skip
    text = capsys.readouterr().out
    assert code == 0
    for part in ("uncertain", "256 → 2048 (m_B=8)", "(m_D=20)", "T=m_B/m_D=0.4", "lr ×√T=0.6325", "1−β of betas ×T=0.4",
                 "eps ×1/√T=1.581", "lr·decoupled decay ×T=0.4", "2205.10287", "conflicts:"):  # fmt: skip
        assert part in " ".join(text.split())
    assert main(["plan", "mlp", "--base", "width=16", "--target", "width=64", "--batch", "256", "2048"]) == 2
    assert "duration='completed-p'" in capsys.readouterr().err


def test_verify_sees_betas_that_left_the_rule() -> None:
    """A scheduler that sets momentum, a state of another length, or betas given to the class where groups override them."""
    plan, model = longer(), MAKE(width=64)
    made = plan.optimizer(model, lr=0.01, betas=(0.9, 0.95))
    made.param_groups[1]["betas"] = (0.9, 0.95)
    with pytest.raises(mt.PlanError, match=r"betas \(0\.9, 0\.95\) where completed-p gives"):
        plan.verify(made)
    silent = torch.optim.AdamW(plan.groups(model, lr=0.01), betas=(0.8, 0.9))
    with pytest.raises(mt.PlanError, match=r"betas=\(0\.8, 0\.9\) was given to AdamW and acts nowhere"):
        plan.verify(silent)
    plan.verify(torch.optim.AdamW(plan.groups(model, lr=0.01, betas=(0.8, 0.9))))
    torch.optim.lr_scheduler.OneCycleLR(made, max_lr=[g["lr"] for g in made.param_groups], total_steps=10)
    with pytest.raises(mt.PlanError, match="betas"):
        plan.verify(made)


class NoBetas(torch.optim.AdamW):
    """A user's class whose memories have other names."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0, eps: float = 1e-8) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, eps=eps)


def test_a_class_without_betas_is_refused_until_its_rule_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names and missing settings are errors that say what to write; a declared rule is used."""
    for name in ("NoBetas", "Other"):
        monkeypatch.setitem(REGISTRY, name.lower(), dataclasses.replace(facts_for("adamw"), name=name))
    monkeypatch.setattr("mutransfer.step_rules.STEP_RULES", dict(STEP_RULES))
    with pytest.raises(
        mt.InputError, match=r"no rule for the optimizer 'nobetas'.*register_rule\('nobetas', like='adamw'\)"
    ):
        longer(optimizer=NoBetas)
    register_rule("NoBetas", like="adamw")
    with pytest.raises(mt.InputError, match="takes no 'betas'"):
        longer(optimizer=NoBetas).optimizer(MAKE(width=64), lr=0.01)
    register_rule("Other", like=StepRule(0.5, -0.5))
    found = longer(optimizer="other").groups(MAKE(width=64), lr=0.01)
    assert "betas" not in found[0]
    with pytest.raises(mt.InputError, match="another"):
        register_rule("adamw", like="sgd")


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_known_optimizer_is_covered_or_refused_by_name(name: str) -> None:
    """No optimizer falls through: its factors are finite and positive, or the message says why there are none."""
    if name in ("adafactor", "sophia", "schedule-free-adamw"):
        with pytest.raises(mt.InputError, match=f"no rule for {name!r}: its|no rule for {name!r}: it "):
            duration("completed-p", 4, 1, name)
        return
    made = duration("completed-p", 4, 1, name)
    found = made.factors(name, {"momentum": 0.9}, coupled=REGISTRY[name].decay == "coupled")
    assert all(0 < factor < math.inf for factor in found.values())
    assert REGISTRY[name].eps_kind != "element" or found["eps"] < 1


BAD: list[tuple[dict[str, Any], str]] = [
    (dict(duration=None), r"batch=\(256, 2048\) needs a rule"),
    (dict(duration=None, batch=None), "tokens="),
    (dict(duration="linear"), "duration='linear': one of 'completed-p', 'sde', 'ema'"),
    (dict(batch=None, tokens=None), "needs base and target"),
    (dict(steps=(10, 20)), "give one"),
    (dict(batch=(0, 4)), r"batch=\(0, 4\)"),
    (dict(batch=(1, 2, 3)), r"batch=\(1, 2, 3\)"),
    (dict(batch=8), "batch=8"),
    (dict(tokens=(1.0, math.nan)), "tokens="),
    (dict(tokens=(1.0, math.inf)), "tokens="),
    (dict(tokens=("1e9", "2e9")), "tokens="),
    (dict(batch=(True, 2)), r"batch=\(True, 2\)"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    """Every wrong value is an InputError that quotes it."""
    with pytest.raises(mt.InputError, match=message) as caught:
        longer(**options)
    assert "\n" not in str(caught.value)


def test_a_beta_below_zero_is_refused() -> None:
    """No average is shorter than a step: the message says how far T may go."""
    plan = longer(batch=(16, 512), tokens=None)
    with pytest.raises(
        mt.InputError, match=r"betas=\(0\.9, 0\.95\): 1 − T·\(1 − 0\.9\) = -2\.2 is below 0 at T=32.*at most 10"
    ):
        plan.groups(MAKE(width=64), lr=0.01, betas=(0.9, 0.95))
    with pytest.raises(mt.InputError, match=r"betas=\(0\.9, 1\.0\)"):
        plan.groups(MAKE(width=64), lr=0.01, betas=(0.9, 1.0))
    with pytest.raises(mt.InputError, match="does not change it"):
        plan.groups(MAKE(width=64), lr=0.01, momentum=0.9)
    with pytest.raises(mt.InputError, match="the plan has no duration"):
        mt.plan(MAKE, **SIZES).groups(MAKE(width=64), lr=0.01, betas=(0.9, 0.95))


def test_l2_inside_a_normalised_step_has_no_timescale() -> None:
    """`ema` speaks of decoupled decay: Adam's L2 is refused, SGD's follows, and no decay is no question."""
    plan, model = longer(optimizer="adam", batch=None, duration="ema"), MAKE(width=64)
    with pytest.raises(mt.InputError, match="L2 term"):
        plan.groups(model, lr=0.01, weight_decay=0.1)
    plan.groups(model, lr=0.01)
    plan.optimizer(model, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)
    sgd = longer(optimizer="sgd", batch=None, duration="ema").groups(model, lr=0.01, weight_decay=0.1)
    plain = mt.plan(MAKE, **SIZES, optimizer="sgd").groups(model, lr=0.01, weight_decay=0.1)
    assert sgd[0]["weight_decay"] == pytest.approx(plain[0]["weight_decay"] / 20)


# ---------------------------------------------------------------- in a run


def test_a_run_without_duration_keeps_its_hash_and_one_with_it_uses_the_rule() -> None:
    """Stored runs keep their keys; a config with a base batch trains with the plan's betas."""
    assert not {"duration", "base_batch", "base_steps"} & set(RunConfig(recipe="sp").to_dict())
    config = RunConfig(base={"width": 64}, batch=32, base_batch=8, duration="sde", betas=(0.9, 0.95))
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.hash() != dataclasses.replace(config, base_batch=16).hash()
    plan = mt.plan(config.make_model, base=config.base, target=config.target, **config.longer)
    assert plan.duration is not None and plan.duration.time == 4.0
    steps = dataclasses.replace(config, base_steps=50, steps=200, duration="completed-p")
    assert steps.longer == {"duration": "completed-p", "batch": (8, 32), "steps": (50, 200)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(base_batch=8), "base_batch=8 needs a rule"),
        (dict(duration="sqrt", base_batch=8), "duration='sqrt'"),
        (dict(duration="sde", base_batch=0), "base_batch=0"),
        (dict(duration="sde", base_batch=1, batch=16), r"betas=\(0\.9, 0\.95\).*below 0"),
        (dict(duration="sde", base={"width": 64, "context": 32}), "one context"),
    ],
)
def test_a_run_that_cannot_follow_is_refused_when_it_is_written(options: dict[str, Any], message: str) -> None:
    """At construction, so that no sweep finds out in the middle."""
    with pytest.raises(mt.InputError, match=message):
        RunConfig(**{"base": {"width": 64}, "batch": 16, **options})
