"""The rules against the golden numbers, and the properties that they must have whatever the numbers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutransfer.errors import InputError
from mutransfer.optimizers import REGISTRY
from mutransfer.rules import Fan, Ratios, gauge, solve

GOLDEN_NAMES = {
    "SGD": ["sgd"],
    "Adam/AdamW": [
        "adam",
        "adamw",
        "nadam",
        "radam",
        "adamax",
        "rmsprop",
        "adagrad",
        "ademamix",
        "schedule-free-adamw",
    ],
    "Lion, sign": ["lion", "sign", "sophia"],
    "Muon: UV^T": ["muon-uvt"],
    "Muon: sqrt(max(1,out/in)) * UV^T": ["muon"],
    "Muon: sqrt(out/in) * UV^T": ["muon-spectral", "scion"],
    "Muon: 0.2*sqrt(max(in,out)) * UV^T": ["muon-kimi"],
    "Shampoo, exponents 1/4 and 1/4": ["shampoo"],
}
BUILT_IN = set(REGISTRY)  # other tests register names of their own
WITHOUT_A_ROW = {
    "lamb",
    "adafactor",
    "soap",
}  # tests/optimizers/test_steps.py measures the learning rates that they need
VOCABULARY = 50304
TENSORS = {  # name: role, (fan-in, fan-out) at widths 256 and 1024, in a branch
    "embedding": ("input", (1, 1), (256, 1024), False),
    "attention_matrix": ("hidden", (256, 1024), (256, 1024), True),
    "mlp_up": ("hidden", (256, 1024), (1024, 4096), True),
    "mlp_down": ("hidden", (1024, 4096), (256, 1024), True),
    "block_vector": ("vector", (1, 1), (256, 1024), True),
    "final_gain": ("vector", (1, 1), (256, 1024), False),
    "head": ("output", (256, 1024), (VOCABULARY, VOCABULARY), False),
}
TABLES = {
    "asymptotic_two_or_more_matrices_per_branch": ("asymptotic", 1.0),
    "asymptotic_one_matrix_per_branch": ("asymptotic", 0.5),
    "exact_vocab_50304_two_or_more_matrices_per_branch": ("exact", 1.0),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("optimizer", [name for names in GOLDEN_NAMES.values() for name in names])
def test_every_golden_number(shared: Path, table: str, optimizer: str) -> None:
    golden = json.loads((shared / "golden" / "ratios_N4_L4.json").read_text())
    assert set(golden) - {"what"} == set(TABLES) and set(golden[table]) == set(GOLDEN_NAMES)
    mode, exponent = TABLES[table]
    assert {name for names in GOLDEN_NAMES.values() for name in names} | WITHOUT_A_ROW == BUILT_IN
    line = next(line for line, names in GOLDEN_NAMES.items() if optimizer in names)
    for name, row in golden[table][line].items():
        role, fan_in, fan_out, in_branch = TENSORS[name]
        ratios = solve(
            role, Fan(*fan_in), Fan(*fan_out), REGISTRY[optimizer],
            depth=4.0, in_branch=in_branch, exponent=exponent, mode=mode,
        )  # fmt: skip
        assert role == row.pop("role")
        found = {
            "forward_multiplier": ratios.multiplier, "branch_multiplier": ratios.branch,
            "init_std": ratios.std, "lr": ratios.lr, "decoupled_wd": ratios.decay,
        } | ({} if ratios.eps is None else {"eps": ratios.eps})  # fmt: skip
        if ratios.eps is None:
            row.pop("eps", None)
        assert found == pytest.approx(row, rel=1e-12), name


def test_steps_that_follow_the_weights_at_the_golden_point() -> None:
    """q = 1: A is RMS(W) times Adam's, so every LR is Adam's over the init ratio; absorbing a multiplier moves no LR."""
    for name in ("lamb", "adafactor"):
        for role, fan_in, fan_out, in_branch in TENSORS.values():
            options = dict(depth=4.0, in_branch=in_branch)
            ours, adam = (solve(role, Fan(*fan_in), Fan(*fan_out), REGISTRY[n], **options) for n in (name, "adamw"))
            assert ours.lr == pytest.approx(adam.lr / adam.std) and ours.eps == adam.eps
            assert ours.decay == pytest.approx(adam.decay * adam.std)
            for t in (ours.multiplier, ours.branch):
                moved = gauge(ours, t, REGISTRY[name], of="multiplier")
                assert (moved.lr, moved.decay, moved.std) == (ours.lr, ours.decay, pytest.approx(ours.std * t))
    head = solve("output", Fan(256, 1024), Fan(65, 65), REGISTRY["lamb"])
    head = gauge(head, head.multiplier, REGISTRY["lamb"], of="multiplier")
    assert (head.multiplier, head.std, head.lr, head.decay, head.eps) == (1, 1 / 4, 1, 1, 1)
    zero = gauge(
        solve("vector", Fan(1, 1), Fan(4, 16), REGISTRY["lamb"].at_zero), 1 / 4, REGISTRY["lamb"].at_zero, of="branch"
    )
    assert zero.lr == 1 / 4  # a bias of zeros has no RMS: Adam's rule


def test_absorbed_golden_cases_of_the_theory() -> None:
    """theory §4: AdamW head ¼, ¼, 4, 1; AdamW branch 1/8, 1/16, 16, ¼; SGD branch 1/8, ¼."""
    adamw, sgd = REGISTRY["adamw"], REGISTRY["sgd"]
    head = solve("output", Fan(256, 1024), Fan(65, 65), adamw, depth=4)
    head = gauge(head, head.multiplier, adamw, of="multiplier")
    assert (head.multiplier, head.std, head.lr, head.decay, head.eps) == (1, 1 / 4, 1 / 4, 4, 1)
    hidden = (Fan(256, 1024), Fan(256, 1024))
    branch = solve("hidden", *hidden, adamw, depth=4, in_branch=True)
    branch = gauge(branch, branch.branch, adamw, of="branch")
    assert (branch.branch, branch.std, branch.lr, branch.decay, branch.eps) == (1, 1 / 8, 1 / 16, 16, 1 / 4)
    branch = solve("hidden", *hidden, sgd, depth=4, in_branch=True)
    branch = gauge(branch, branch.branch, sgd, of="branch")
    assert (branch.std, branch.lr) == (1 / 8, 1 / 4)


def test_section_3_table_for_any_width_and_depth() -> None:
    """The symbolic rows of theory §3, evaluated away from the golden point."""
    n, depth = 8.0, 2.0
    width = Fan(64, 512)
    for name, (emb, hidden, vector, head) in {
        "sgd": (n, depth, n * depth, n),
        "adamw": (1, 1 / n, 1, 1),
        "lion": (1, 1 / n, 1, 1),
    }.items():
        facts = REGISTRY[name]
        one = Fan(1, 1)
        found = (
            solve("input", one, width, facts).lr,
            solve("hidden", width, width, facts, depth=depth, in_branch=True).lr,
            solve("vector", one, width, facts, depth=depth, in_branch=True).lr,
            solve("output", width, Fan(100, 100), facts).lr,
        )
        assert found == pytest.approx((emb, hidden, vector, head))


roles = st.sampled_from(["input", "hidden", "output", "vector", "scalar"])
optimizers = st.sampled_from(sorted(REGISTRY))
sizes = st.integers(1, 4096)
exponents = st.sampled_from([0.5, 1.0])
modes = st.sampled_from(["exact", "asymptotic"])


def fans(role: str, width: tuple[int, int], ratio: tuple[int, int] = (1, 1)) -> tuple[Fan, Fan]:
    growing_in, growing_out = Fan(width[0], width[1]), Fan(width[0] * 3, width[1] * 3)
    fan_in = growing_in if role in ("hidden", "output") else Fan(7, 7)
    fan_out = growing_out if role in ("hidden", "input", "vector") else Fan(11, 11)
    return fan_in, fan_out


@given(roles, optimizers, sizes, exponents, modes, st.booleans())
def test_ratio_one_is_the_identity(role, optimizer, width, exponent, mode, in_branch) -> None:
    fan_in, fan_out = fans(role, (width, width))
    r = solve(role, fan_in, fan_out, REGISTRY[optimizer], in_branch=in_branch, exponent=exponent, mode=mode)
    eps = 1.0 if REGISTRY[optimizer].eps_kind else None
    assert r == Ratios(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, eps, 1.0)


@given(roles, optimizers, sizes, sizes, sizes, st.tuples(*[st.integers(1, 64)] * 3), exponents, modes, st.booleans())
def test_ratios_compose(role, optimizer, w0, w1, w2, depths, exponent, mode, in_branch) -> None:
    """derive(r₁·r₂) = derive(r₁)·derive(r₂): going through an intermediate size changes nothing."""
    facts = REGISTRY[optimizer]

    def ratios(start: int, end: int, depth: float) -> Ratios:
        return solve(
            role, *fans(role, (start, end)), facts, depth=depth, in_branch=in_branch, exponent=exponent, mode=mode
        )

    if mode == "asymptotic" and len({w0, w1, w2}) < 3:
        return  # an axis that does not grow in one of the legs is a fixed axis there: a different limit
    d0, d1, d2 = depths
    whole, first, second = ratios(w0, w2, d2 / d0), ratios(w0, w1, d1 / d0), ratios(w1, w2, d2 / d1)
    for field in ("multiplier", "branch", "std", "lr", "decay", "l2", "gradient"):
        assert getattr(whole, field) == pytest.approx(getattr(first, field) * getattr(second, field), rel=1e-9)


@given(roles, optimizers, sizes, sizes, st.floats(0.01, 100), st.floats(0.01, 100))
def test_gauges_compose_and_leave_the_update_of_the_function_alone(role, optimizer, w0, w1, t, u) -> None:
    facts = REGISTRY[optimizer]
    r = solve(role, *fans(role, (w0, w1)), facts)
    once, twice = (
        gauge(r, t * u, facts, of="multiplier"),
        gauge(gauge(r, t, facts, of="multiplier"), u, facts, of="multiplier"),
    )
    for field, value in once.__dict__.items():
        assert value == (None if value is None else pytest.approx(getattr(twice, field), rel=1e-9))
    # mult·std, and mult·lr·‖A‖ with A of degree p in a gradient that carries the multiplier and q in the weight, are invariant
    assert once.multiplier * once.std == pytest.approx(r.multiplier * r.std)
    power = 1 + facts.degree - facts.weight
    assert once.multiplier**power * once.lr == pytest.approx(r.multiplier**power * r.lr)
    assert once.lr * once.decay == pytest.approx(r.lr * r.decay)


def test_exact_and_asymptotic_differ_where_a_growing_fan_meets_a_fixed_one() -> None:
    """theory §2: a 50,304-way head under Muon-Kimi has asymptotic LR ratio 1 and exact √N."""
    head = ("output", Fan(256, 1024), Fan(VOCABULARY, VOCABULARY), REGISTRY["muon-kimi"])
    assert solve(*head, mode="asymptotic").lr == 1.0
    assert solve(*head, mode="exact").lr == 2.0


@pytest.mark.parametrize("wrong", [dict(role="middle"), dict(mode="sharp"), dict(depth=0.0)])
def test_wrong_arguments_are_named(wrong: dict) -> None:
    arguments = dict(role="hidden", fan_in=Fan(1, 2), fan_out=Fan(1, 2), facts=REGISTRY["sgd"]) | wrong
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        solve(**arguments)
