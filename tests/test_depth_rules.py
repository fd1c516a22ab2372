"""Claims about depth: α multiplies what each block adds and nothing else, once, at every size, under every optimizer."""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.models.gpt import GPTConfig, gpt_factory
from mutransfer.models.mlp import mlp_factory
from mutransfer.models.resnet import resnet_factory
from mutransfer.optimizers import REGISTRY
from tests import residual_zoo as zoo

BASE, TARGET = 2, 6
ALPHA = BASE / TARGET


def build(kind: type[nn.Module], depth: int, n: int = 8, net: type[zoo.Net] = zoo.Net) -> nn.Module:
    torch.manual_seed(0)
    model = kind(n, depth) if kind in zoo.MODELS else net(kind, n, depth)
    return model.double().eval()


def planned(big: nn.Module, small: nn.Module, **options) -> mt.Plan:
    names = [name for name, _ in big.named_parameters()]
    axes = {pattern: labels for pattern, labels in zoo.AXES.items() if fnmatch.filter(names, pattern)}
    return mt.plan(big, base=small, axes=axes, **{"recipe": "completep", **options})


def example(kind: type[nn.Module]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    if kind in (zoo.EncoderDecoder, zoo.LambdaGPT):
        ids = torch.arange(10).view(2, 5) % 11
        return (ids, ids[:, :4]) if kind is zoo.EncoderDecoder else (ids,)
    if kind is zoo.PatchTransformer:
        shape = (2, 3, 16, 16)
    else:
        shape = (2, 3, 6, 6) if getattr(kind, "kind", "") == zoo.IMAGE else (2, 5, 3)
    return (torch.randn(shape, generator=generator, dtype=torch.float64),)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """No tensor at zero or one, where a mistake could hide."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.copy_(0.25 * torch.randn(p.shape, generator=generator, dtype=p.dtype) + (0.1 if p.ndim == 1 else 0.0))


@torch.no_grad()
def apply(plan: mt.Plan, model: nn.Module) -> nn.Module:
    """Every tensor times the branch factors that the plan moved into it, and the plan's hooks."""
    for name, p in model.named_parameters():
        for factor in re.findall(r"absorbs ([\d.e-]+) \(residual branch", plan[name].derivation):
            p.mul_(ALPHA if abs(float(factor) - ALPHA) < 1e-5 else float(factor))  # printed with six digits
    return plan.attach(model)


def check_damped(kind: type[nn.Module], placement: str, net: type[zoo.Net] = zoo.Net) -> mt.Plan:
    small, big = build(kind, BASE, net=net), build(kind, TARGET, net=net)
    plan = planned(big, small, placement=placement)
    randomise(big)
    x = example(kind)
    with torch.no_grad():
        plain, want = big(*x), big.damped(*x, ALPHA)
        torch.testing.assert_close(plain, big.damped(*x, 1.0), rtol=1e-12, atol=1e-12)  # the zoo's own claim
        got = apply(plan, big)(*x)
    assert (plain - want).abs().max() > 1e-3 * want.abs().max()
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10 * float(want.abs().max()))
    return plan


@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
@pytest.mark.parametrize("kind", [*zoo.FOUND, *zoo.MODELS], ids=lambda kind: kind.__name__)
def test_the_plans_model_is_the_users_with_every_branch_times_alpha(kind: type[nn.Module], placement: str) -> None:
    check_damped(kind, placement)


@pytest.mark.parametrize("kind", [zoo.SelfAttention, zoo.Feed, zoo.Swish], ids=lambda kind: kind.__name__)
def test_a_sum_in_the_parents_forward_makes_the_block_the_branch(kind: type[nn.Module]) -> None:
    check_damped(kind, "absorbed", zoo.SumOutside)


@pytest.mark.parametrize("kind", zoo.REFUSED, ids=lambda kind: kind.__name__)
def test_what_cannot_take_alpha_is_refused_with_a_line_to_write(kind: type[nn.Module]) -> None:
    small, big = build(kind, BASE), build(kind, TARGET)
    with pytest.raises(mt.InputError) as caught:
        planned(big, small)
    text = str(caught.value)
    assert "'layers.0'" in text and "branch_out=['layers.*" in text and "recipe='mup'" in text and "\n" not in text
    assert planned(big, small, recipe="mup").rows


def test_an_identity_on_the_branch_is_a_place_for_alpha() -> None:
    class Marked(zoo.Unscalable):
        def __init__(self, n: int) -> None:
            super().__init__(n)
            self.branch = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(torch.tanh(self.lin(x)))

        def damped(self, x: Tensor, a: float) -> Tensor:
            return x + a * torch.tanh(self.lin(x))

    plan = check_damped(Marked, "absorbed")
    declared = planned(build(Marked, TARGET), build(Marked, BASE), branch_out="layers.*.branch")
    assert plan.hooks == declared.hooks and len(plan.hooks) == TARGET


def test_the_traced_model_and_the_random_state_are_left_alone() -> None:
    small, big = build(zoo.Bottleneck, BASE), build(zoo.Bottleneck, TARGET)
    small.train()
    before = {n: t.clone() for n, t in small.state_dict().items()}
    state = torch.get_rng_state()
    planned(big, small)
    assert torch.equal(state, torch.get_rng_state()) and small.training
    assert all(torch.equal(t, before[n]) for n, t in small.state_dict().items())
    assert not any(m._forward_hooks for m in small.modules())


def test_an_expert_that_no_token_reached_ends_as_its_siblings_do() -> None:
    class Lonely(zoo.Mixture):
        """The router always takes the first two experts."""

        def _branch(self, x: Tensor) -> Tensor:
            h = self.n1(x)
            return sum((self.router(h).softmax(-1)[..., i, None] * self.experts[i](h) for i in (0, 1)), 0 * x)

    plan = planned(build(Lonely, TARGET), build(Lonely, BASE))
    taken = {r.name for r in plan.rows if "residual branch" in r.derivation and r.name.startswith("layers.0.")}
    assert taken == {f"layers.0.experts.{i}.c.{t}" for i in range(4) for t in ("weight", "bias")}


def test_the_widths_of_the_two_models_may_differ_and_meta_is_enough() -> None:
    """A factory on meta: the stand-in runs at the base's width, the ends are the target's."""

    def make(width: int, depth: int) -> nn.Module:
        return zoo.Net(zoo.Sandwich, width, depth)

    plan = mt.plan(make, base=dict(width=8, depth=2), target=dict(width=32, depth=8), recipe="completep")
    ends = {r.name.partition(".n")[2] for r in plan.rows if "residual branch × 0.25" in r.derivation}
    assert ends == {"2.g", "4.g"}


# ------------------------------------------------------------------ one matrix or several


@pytest.mark.parametrize(
    ("kind", "recipe", "expected"),
    [
        (zoo.OneMatrix, "completep", "hold one matrix; recipe 'completep' is kept"),
        (zoo.OneMatrix, "depth-mup", None),
        (zoo.PlainPre, "completep", None),
        (zoo.PlainPre, "depth-mup", "hold two or more matrices; recipe 'depth-mup' is kept"),
        (zoo.ScaledActivation, "completep", "layers.*.gain hold one matrix"),
    ],
)
def test_the_wrong_depth_rule_for_the_number_of_matrices_is_said_and_never_changed(kind, recipe, expected) -> None:
    plan = planned(build(kind, TARGET), build(kind, BASE), recipe=recipe)
    said = [note for note in plan.notes if "matri" in note]
    assert [expected in note for note in said] == ([True] if expected else [])
    assert plan.recipe == recipe and plan.depth_exponent == {"completep": 1.0, "depth-mup": 0.5}[recipe]


def test_a_block_with_branches_of_both_kinds_fits_neither_rule() -> None:
    class Both(zoo.PlainPre):
        def __init__(self, n: int) -> None:
            super().__init__(n)
            self.ffn = nn.Linear(n, n)

    plan = planned(build(Both, TARGET), build(Both, BASE))
    assert any("others do not: no one rule fits both" in note for note in plan.notes)


# ------------------------------------------------------------------ factors of depth in the user's own code


class OwnDepth(nn.Module):
    """A GPT-2-like stack whose own initialisation, or forward, knows its depth. `style` names how."""

    def __init__(self, width: int, depth: int, style: str = "gpt2") -> None:
        super().__init__()
        self.depth, self.style = depth, style
        self.wte, self.head = nn.Embedding(64, width), nn.Linear(width, 64, bias=False)
        self.h = nn.ModuleList(zoo.PlainPre(width) for _ in range(depth))
        self.apply(self._init_weights)
        for name, p in self.named_parameters():  # as transformers' GPT-2 does
            if name.endswith(("back.weight", "two.weight")):
                nn.init.normal_(p, 0.0, 0.02 * self.factor(int(name.split(".")[1])))

    def factor(self, layer: int) -> float:
        return {
            "gpt2": (2 * self.depth) ** -0.5, "root": self.depth**-0.5, "whole": 1 / self.depth,
            "layer": (2 * (layer + 1)) ** -0.5,
        }.get(self.style, 1.0)  # fmt: skip

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx)
        for block in self.h:
            y = block(x) if self.style != "forward" else block.damped(x, 1 / self.depth)
            x = y
        return self.head(x)


def own_depth(style: str):
    def make(width: int, depth: int) -> OwnDepth:
        return OwnDepth(width, depth, style)

    return make


FORMULAS = {"gpt2": "1/√(2·n_layer)", "root": "1/√n_layer", "whole": "1/n_layer", "layer": "1/√layer"}
SIZES = dict(width=64, depth=3), dict(width=64, depth=12), dict(width=128, depth=6)  # N = L in the last


@pytest.mark.parametrize("recipe", ["completep", "depth-mup", "mup"])
@pytest.mark.parametrize("style", [*FORMULAS, "plain"])
def test_the_target_gets_the_bases_law_whatever_its_own_code_draws(style: str, recipe: str) -> None:
    """std = base std × the plan's ratio for every tensor, from a factory and from modules; and the plan says so."""
    make = own_depth(style)
    base = SIZES[0]
    for target, source in ((SIZES[1], "modules"), (SIZES[2], "factory"), (SIZES[2], "modules")):
        torch.manual_seed(0)
        small, big = make(**base), make(**target)
        options = dict(base=base, target=target) if source == "factory" else dict(base=small)
        plan = mt.plan(make if source == "factory" else big, recipe=recipe, **options)
        plan.initialize(big, seed=0)
        real = dict(small.named_parameters())
        for name, p in big.named_parameters():
            row = plan[name]
            if row.base_law.kind == "constant" or p.numel() < 4096:
                continue
            want = float(real[row.base_name].detach().std()) * row.ratios.std
            assert float(p.detach().std()) == pytest.approx(want, rel=0.06), (name, source)
        said = [note for note in plan.notes if "initial std" in note]
        assert [FORMULAS[style] in note for note in said] == ([True] if style in FORMULAS else []), plan.notes
        if style in ("gpt2", "root", "whole"):
            assert ("depth is counted once" if recipe != "mup" else "has no depth rule of its own") in said[0]
            assert "h.*.att.back.weight" in said[0] and "h.*.ffn.two.weight" in said[0] and "mix" not in said[0]


@pytest.mark.parametrize("style", ["gpt2", "plain", "forward"])
def test_a_blocks_contribution_at_the_start_falls_like_one_over_depth(style: str) -> None:
    """Norm of what one block adds, against the base, for the same stream; absorbed, so the user's own forward runs."""
    make = own_depth(style)
    base, target = dict(width=64, depth=4), dict(width=64, depth=16)
    torch.manual_seed(0)
    plan = mt.plan(make, base=base, target=target, recipe="completep")
    small, big = make(**base), plan.initialize(make(**target))
    x = torch.randn(64, 8, 64)

    def added(model: OwnDepth) -> float:
        own = 1 / model.depth if style == "forward" else 1.0
        with torch.no_grad():
            return math.sqrt(sum(float((b.damped(x, own) - x).square().mean()) for b in model.h) / model.depth)

    assert added(big) / added(small) == pytest.approx(0.25, rel=0.08)


def test_a_forward_that_multiplies_by_one_over_depth_itself_leaves_nothing_to_absorb() -> None:
    plan = mt.plan(
        own_depth("forward"), base=dict(width=16, depth=2), target=dict(width=16, depth=8), recipe="completep"
    )
    assert not plan.hooks and not any("absorbs" in row.derivation and ".back" in row.name for row in plan.rows)
    assert any("own forward multiplies the branches" in note and "×0.25" in note for note in plan.notes)


@pytest.mark.parametrize("style", [*FORMULAS, "plain"])
def test_at_ratio_one_such_an_initialisation_keeps_every_bit(style: str) -> None:
    make = own_depth(style)
    torch.manual_seed(0)
    model = make(width=16, depth=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = mt.plan(make, base=dict(width=16, depth=3), target=dict(width=16, depth=3), recipe="completep")
    plan.initialize(model)
    assert plan.identity and not any("initial std" in note for note in plan.notes)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_reference_gpt_with_scaled_residuals_says_so() -> None:
    make = gpt_factory(vocab_size=17, context=8, head_size=8, residual_init="scaled")
    sizes = dict(base=dict(width=16, depth=2), target=dict(width=64, depth=8))
    plan = mt.plan(make, recipe="completep", **sizes)
    assert any("1/√(2·n_layer) (×0.5 at the base's 2 blocks)" in note for note in plan.notes)
    row = plan["blocks.0.mlp.down.weight"]
    config = GPTConfig(width=16, depth=2, head_size=8)
    assert row.base_law.std == pytest.approx(config.init_std / 2)
    assert row.ratios.std == pytest.approx(0.5 * 0.25)  # N^-½ of width, 1/L of depth, nothing of √(2·8)
    assert mt.plan(make, recipe="sp", **sizes)["blocks.0.mlp.down.weight"].target_law.std == config.init_std / 4


# ------------------------------------------------------------------ width and depth together

FACTORIES = {
    "mlp": mlp_factory(inputs=3, outputs=2, residual=True, norm="layernorm"),
    "gpt": gpt_factory(vocab_size=17, context=8, head_size=8, bias=True),
    "resnet": resnet_factory(),
}
GROWTH = {  # base, its width, its depth → target
    "mlp": (dict(width=8, depth=1), dict(width=32), dict(depth=3)),
    "gpt": (dict(width=16, depth=1), dict(width=64), dict(depth=3)),
    "resnet": (dict(width=4, blocks=(2, 2)), dict(width=8), dict(blocks=(3, 4))),
}
CHOICES = list(itertools.product(["completep", "depth-mup"], ["absorbed", "multiplier"], ["width", "depth"]))
CASES = [
    (model, optimizer, *choice)
    for i, optimizer in enumerate(sorted(REGISTRY))
    for model, choices in (
        ("mlp", CHOICES[i % 4 :: 4]),
        ("gpt", [CHOICES[i % 8]]),
        ("resnet", [CHOICES[(3 * i) % 8]] if optimizer in ("sgd", "adamw", "muon", "shampoo") else []),
    )
    for choice in choices
]


@pytest.mark.parametrize(("model", "optimizer", "recipe", "placement", "first"), CASES)
def test_width_times_depth_is_the_joint_plan(
    model: str, optimizer: str, recipe: str, placement: str, first: str
) -> None:
    """derive(width)·derive(depth) = derive(width and depth), in either order, for every number of every tensor."""
    base, wider, deeper = GROWTH[model]
    middle, target = {**base, **(wider if first == "width" else deeper)}, {**base, **wider, **deeper}

    def rows(start: dict, end: dict) -> dict:
        plan = mt.plan(
            FACTORIES[model], base=start, target=end, optimizer=optimizer, recipe=recipe, placement=placement
        )
        return {row.name: row for row in plan.rows} | {"hooks": {(h.module, h.where): h.factor for h in plan.hooks}}

    one, two, both = rows(base, middle), rows(middle, target), rows(base, target)
    hooks = [each.pop("hooks") for each in (one, two, both)]
    compared = 0
    for name, row in both.items():
        before, after = one[two[name].base_name], two[name]
        if not row.optimizer == before.optimizer == after.optimizer:
            continue  # a matrix optimizer takes what is a matrix only while it grows
        compared += 1
        for field in ("multiplier", "branch", "std", "lr", "decay", "l2", "gradient", "eps"):
            a, b, c = (getattr(r.ratios, field) for r in (before, after, row))
            assert c == (None if c is None else pytest.approx(a * b, rel=1e-9)), (name, field)
    assert compared > len(both) / 4
    for (module, where), factor in hooks[2].items():
        inner = {two[n].name.rpartition(".")[0]: two[n].base_name.rpartition(".")[0] for n in two}
        parts = hooks[1].get((module, where), 1.0) * hooks[0].get((inner.get(module, module), where), 1.0)
        assert factor == pytest.approx(parts, rel=1e-9), module


def _picked(h: Tensor) -> Tensor:
    out, large = torch.zeros_like(h), h > 0.1
    out[large] = h[large]
    return out


@pytest.mark.parametrize(
    ("name", "behind", "found"),
    [
        ("mask", lambda h, norm: h.masked_fill(h.abs() < 0.3, 0), False),
        ("where", lambda h, norm: torch.where(h > 0.3, h, torch.zeros_like(h)), False),
        ("index", lambda h, norm: _picked(h), False),
        ("bucket", lambda h, norm: h.gather(-1, (h * 3).abs().long() % h.shape[-1]), False),
        ("norm used twice", lambda h, norm: norm(h), False),
        ("sign", lambda h, norm: torch.where(h > 0, h, 0.1 * h), True),
        ("order", lambda h, norm: h.gather(-1, h.argsort(-1)), True),
        ("largest", lambda h, norm: torch.zeros_like(h).scatter(-1, h.topk(2, -1).indices, h.topk(2, -1).values), True),
    ],
)
def test_what_selects_a_part_of_the_branch_must_not_change_with_its_size(name: str, behind: Any, found: bool) -> None:
    class Selected(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(n), nn.Linear(n, n), nn.Linear(n, n)

        def _branch(self, x: Tensor) -> Tensor:
            return behind(self.two(self.one(self.norm(x)).relu()), self.norm)

        def forward(self, x: Tensor) -> Tensor:
            return x + self._branch(x)

        def damped(self, x: Tensor, a: float) -> Tensor:
            return x + a * self._branch(x)

    if found:
        check_damped(Selected, "absorbed")
    else:
        with pytest.raises(mt.InputError, match="no tensor's multiplier passes"):
            planned(build(Selected, TARGET), build(Selected, BASE))
