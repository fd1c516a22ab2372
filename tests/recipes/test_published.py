"""The published codes, written down as formulas, train along the very path of the recipe of their name.

Every `Published` below is transcribed from the paper's table or the code's optimizer groups, with N and L the ratios of width and depth
to the base; nothing of it comes from the package. Both models start from one draw, run in float64 and must agree step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch

import mutransfer as mt
from mutransfer import sparsity
from mutransfer.recipes import RECIPES
from tests.plan_cases import build
from tests.recipes.models import HEAD, How, NanoGPT, train

BASE = dict(width=32, depth=2)
LR, DECAY, EPS = 2**-6, 0.1, 1e-4

Number = Callable[[float, float], float]


def one(n: float, depth: float) -> float:
    """Not scaled."""
    return 1.0


@dataclass(frozen=True)
class Group:
    """Ratios of one published param group: init std, LR, weight decay, eps. `decayed`: whether it decays at all."""

    std: Number = one
    lr: Number = one
    decay: Number = one
    eps: Number = one
    decayed: bool = True


@dataclass(frozen=True)
class Published:
    """What one code does by kind of tensor, and in its forward pass as a function of (N, L)."""

    tables: Group
    hidden: Group
    residual: Group
    inner: Group  # gains and biases in blocks
    final: Group
    how: Callable[[float, float], How]
    head: Group | None = None  # None: tied
    zeros: tuple[str, ...] = ()
    gpt2: bool = True
    density: float | None = None
    more: Mapping[str, object] = field(default_factory=dict)


def fall(exponent: float) -> Number:
    """1/N^exponent."""
    return lambda n, depth: n**-exponent


ROOT = fall(0.5)
ONCE = fall(1.0)
D = 1 / HEAD

MASTER = Published(  # EleutherAI/nanoGPT-mup, master: c_proj at σ/√(2·n_layer·m_d), lr_scale 1/m_d, one adam_eps and weight_decay
    tables=Group(), hidden=Group(std=ROOT, lr=ONCE),
    residual=Group(std=lambda n, depth: (n * depth) ** -0.5, lr=ONCE),
    inner=Group(decayed=False), final=Group(decayed=False), how=lambda n, depth: How(attention=D, logits=1 / n),
)  # fmt: skip


def both(n: float, depth: float) -> float:
    """1/(N·L)."""
    return 1 / (n * depth)


COMPLETE = Published(  # branch completep: adam_eps *= 1/m_d · m_L^-1 for all groups, weight_decay / width_lr_scaling
    tables=Group(eps=both), hidden=Group(ROOT, ONCE, lambda n, depth: n, both), residual=Group(ROOT, ONCE, lambda n, depth: n, both),
    inner=Group(eps=both, decayed=False), final=Group(eps=both, decayed=False),
    how=lambda n, depth: How(attention=D, branch=1 / depth, logits=1 / n), gpt2=False,
)  # fmt: skip
CORRECTED = Published(  # … with emb_unemb_adam_eps = adam_eps / m_d since January 2026
    tables=Group(eps=ONCE), hidden=COMPLETE.hidden, residual=COMPLETE.residual, inner=COMPLETE.inner,
    final=Group(eps=ONCE, decayed=False), how=COMPLETE.how, gpt2=False,
)  # fmt: skip
MU_SCALING = Published(  # input_mult on the token table, the same on logits; c_attn's first third and wte zero; wd × width_mult
    tables=Group(), hidden=Group(ROOT, ONCE, lambda n, depth: n),
    residual=Group(lambda n, depth: (n * depth) ** -0.5, ONCE, lambda n, depth: n),
    inner=Group(), final=Group(), how=lambda n, depth: How(tokens=5.0, logits=5.0 / n), zeros=("wte", "query"),
)  # fmt: skip
CEREBRAS = Published(  # 2304.03208: m_emb = 10 on tokens and positions, 1/d attention, residual init as GPT-2, one eps and decay
    tables=Group(), hidden=MASTER.hidden, residual=MASTER.residual, inner=Group(), final=Group(),
    how=lambda n, depth: How(attention=D, tokens=10.0, positions=10.0, logits=1 / n),
)  # fmt: skip
MEGATRON = Published(  # hidden and an untied readout: lr and eps / width_mult; the rest unscaled; eps of matrices × 1/L; branches 1/L
    tables=Group(), hidden=Group(ROOT, ONCE, one, both), residual=Group(ROOT, ONCE, one, both), inner=Group(), final=Group(),
    how=lambda n, depth: How(branch=1 / depth, logits=1 / n), head=Group(lr=ONCE, eps=ONCE), gpt2=False,
)  # fmt: skip
SUPAR = Published(  # 2405.15743 Table 1: σ²/(m_d·m_ρ), η/(m_d·m_ρ), 1/d attention; its lr·wd and eps here: derived
    tables=Group(eps=ONCE), hidden=Group(lambda n, depth: (n / 4) ** -0.5, lambda n, depth: 4 / n, lambda n, depth: n / 4, ONCE),
    residual=Group(lambda n, depth: (n / 4) ** -0.5, lambda n, depth: 4 / n, lambda n, depth: n / 4, ONCE),
    inner=Group(eps=ONCE), final=Group(eps=ONCE), how=lambda n, depth: How(attention=D, logits=1 / n), gpt2=False, density=0.25,
)  # fmt: skip
LARGE_VOCABULARY = Published(  # 2506.15025: embedding LR √width times the hidden one
    tables=Group(lr=ROOT, decay=lambda n, depth: n**0.5, eps=ONCE), hidden=Group(ROOT, ONCE, lambda n, depth: n, ONCE),
    residual=Group(ROOT, ONCE, lambda n, depth: n, ONCE), inner=Group(eps=ONCE), final=Group(eps=ONCE),
    how=lambda n, depth: How(logits=1 / n), head=Group(eps=ONCE), gpt2=False,
)  # fmt: skip
CODES: dict[str, Published] = {
    "nanogpt-mup": MASTER,
    "nanogpt-completep": COMPLETE,
    "nanogpt-completep-eps": CORRECTED,
    "mu-scaling": MU_SCALING,
    "cerebras-gpt": CEREBRAS,
    "megatron-depth-mup": MEGATRON,
    "supar": SUPAR,
    "large-vocabulary": LARGE_VOCABULARY,
}
DEPTHLESS = ("supar", "large-vocabulary")  # no word on depth in the original


def group_of(code: Published, name: str) -> Group:
    if name.startswith(("wte", "wpe")):
        return code.tables
    if name.startswith("lm_head"):
        assert code.head is not None
        return code.head
    if name.endswith(("c_attn.weight", "c_fc.weight")):
        return code.hidden
    if name.endswith("c_proj.weight"):
        return code.residual
    return code.final if name.startswith("ln_f") else code.inner


def published(code: Published, model: NanoGPT, n: float, depth: float, gpt2_rebased: float) -> torch.optim.Optimizer:
    """Turn a model with the base's σ into the published one, and build its optimizer group by group.

    `gpt2_rebased` undoes the model's own √(2·n_layer) so that `std` counts from the base.
    """
    groups = []
    with torch.no_grad():
        for name, p in model.named_parameters():
            group = group_of(code, name)
            if p.dim() > 1:
                p.mul_(group.std(n, depth) * (gpt2_rebased if code.gpt2 and "c_proj" in name else 1.0))
            if "wte" in code.zeros and name.startswith("wte"):
                p.zero_()
            if "query" in code.zeros and name.endswith("c_attn.weight"):
                p[: p.shape[1]].zero_()
            decay = DECAY * group.decay(n, depth) if group.decayed else 0.0
            groups.append(
                {"params": [p], "lr": LR * group.lr(n, depth), "weight_decay": decay, "eps": EPS * group.eps(n, depth)}
            )
    model.how = code.how(n, depth)
    return torch.optim.AdamW(groups)


@pytest.mark.parametrize(("sizes", "placement"), [
    (BASE, "absorbed"), (dict(width=96, depth=6), "absorbed"), (dict(width=64, depth=2), "multiplier"),
], ids=["base", "N=L=3", "N=2, by hooks"])  # fmt: skip
@pytest.mark.parametrize("name", CODES)
def test_the_recipe_trains_along_the_published_path(name: str, sizes: dict[str, int], placement: str) -> None:
    code = CODES[name]
    if name in DEPTHLESS:
        sizes = {**sizes, "depth": BASE["depth"]}
    n, depth = sizes["width"] / BASE["width"], sizes["depth"] / BASE["depth"]

    def make(width: int, depth: int) -> NanoGPT:
        return NanoGPT(width, depth, tied=code.head is None, gpt2=code.gpt2)

    plan = mt.plan(make, base=BASE, target=sizes, recipe=name, placement=placement, density=code.density)
    ours, theirs = build(make, sizes).double(), build(make, sizes).double()
    assert isinstance(theirs, NanoGPT)
    reference = published(code, theirs, n, depth, math.sqrt(depth))
    plan.initialize(ours)
    overrides = {p: {"weight_decay": 0.0} for p in ("*.bias", "*ln_*")} if not code.inner.decayed else None
    optimizer = plan.optimizer(ours, lr=LR, weight_decay=DECAY, eps=EPS, overrides=overrides)
    if code.density is not None:
        for row in plan.rows:
            if row.density < 1:
                weight, mask = theirs.get_parameter(row.name), sparsity.masked(ours, row.name)[1]
                weight.data.mul_(mask)
                weight.register_hook(lambda g, mask=mask: g * mask)
    want = train(theirs, reference, 5)
    assert train(ours, optimizer, 5) == pytest.approx(want, rel=1e-9)
    assert want[-1] < want[0]


@pytest.mark.parametrize("name", CODES)
def test_ratio_one_is_the_users_own_model_where_the_original_says_so(name: str) -> None:
    """Attention 1/d and multipliers change the base itself, the plan says so, and nothing else does."""
    code = CODES[name]
    plan = mt.plan(
        lambda width, depth: NanoGPT(width, depth, tied=code.head is None), base=BASE, target=BASE, recipe=name
    )
    how = code.how(1.0, 1.0)
    changes = how.attention is not None or how.tokens != 1.0 or bool(code.zeros)
    assert plan.identity == (not changes) == (not RECIPES[name].changes_base)
    assert any("changes the base" in note for note in plan.notes) == changes


def test_decay_that_depends_on_no_learning_rate() -> None:
    """Independent decay (2309.14322): one step shrinks every weight by the same fraction at any LR, width and role."""
    for lr in (2**-6, 2**-9):
        plan = mt.plan(NanoGPT, base=BASE, target=dict(width=96, depth=2), recipe="independent-decay")
        model = plan.initialize(NanoGPT(96, 2))
        optimizer = plan.optimizer(model, lr=lr, weight_decay=1e-3)
        assert {round(g["lr"] * g["weight_decay"], 12) for g in optimizer.param_groups} == {1e-3}
        assert plan.verify(optimizer, model)["lr"] == pytest.approx(lr)
    for wrong in (None, 2.0):
        with pytest.raises(mt.InputError, match=r"weight_decay=.*fraction that one step takes off every weight"):
            plan.groups(model, lr=1e-3, weight_decay=wrong)


@pytest.mark.parametrize(
    ("name", "n", "depth"), [("spectral-muon", 3, 5), ("spectral-muon-kimi", 3, 5), ("spectral-muon-kimi", 4, 4)]
)
def test_spectral_muon_by_its_own_formulas(name: str, n: int, depth: int) -> None:
    """2310.17813, 2603.00541: √(out/in)·UVᵀ keeps its LR; 0.2√max(in,out)·UVᵀ falls like N^-½; AdamW on the rest; branches 1/L."""
    plan = mt.plan(lambda width, depth: NanoGPT(width, depth, tied=False), base=BASE,
                   target=dict(width=32 * n, depth=2 * depth), recipe=name, placement="multiplier")  # fmt: skip
    muon = "muon-spectral" if name == "spectral-muon" else "muon-kimi"
    for row in plan.rows:
        matrix = "c_" in row.name and row.name.endswith("weight")
        assert row.optimizer == (muon if matrix else "adamw"), row.name
        lr = {"muon-spectral": 1.0, "muon-kimi": n**-0.5, "adamw": 1.0}[row.optimizer]
        assert row.ratios.lr == pytest.approx(lr) and row.ratios.lr * row.ratios.decay == pytest.approx(1)
        assert row.ratios.std == pytest.approx(n**-0.5 if matrix else 1.0)
    assert {round(h.factor, 12) for h in plan.hooks} == {round(1 / n, 12), round(1 / depth, 12)}


@pytest.mark.parametrize(("n", "depth"), [(3, 5), (4, 4), (2, 1)])
def test_u_mup_by_its_own_table(n: int, depth: int) -> None:
    """2407.17465 Table 2 (Adam): every std 1; LR η/√fan_out for embeddings, η/√fan_in for hidden weights, η for the readout and vectors;
    × 1/√depth in residual branches; multipliers 1/√fan_in, branches √(2/n_layer), readout 1/fan_in. As ratios."""
    plan, base = (
        mt.plan(
            lambda width, depth: NanoGPT(width, depth, tied=False, gpt2=False), base=BASE, target=target, recipe="u-mup"
        )
        for target in (dict(width=32 * n, depth=2 * depth), BASE)
    )
    for row in plan.rows:
        path = row.name.removesuffix(".weight")
        inside = path.startswith("h.")
        kind = (
            "table"
            if path in ("wte", "wpe")
            else "head"
            if path == "lm_head"
            else "hidden"
            if "c_" in path and path != row.name
            else "vector"
        )
        lr = {"table": n**-0.5, "hidden": n**-0.5, "head": 1.0, "vector": 1.0}[kind] * (depth**-0.5 if inside else 1.0)
        small = base[row.base_name].ratios
        assert row.ratios.lr / small.lr == pytest.approx(lr), row.name
        assert row.ratios.lr * row.ratios.decay == pytest.approx(small.lr * small.decay)  # its decay is independent
        if kind != "vector":
            assert row.base_law.std * row.ratios.std == pytest.approx(1.0)
            forward = {"table": 1.0, "hidden": n**-0.5, "head": 1 / n}[kind] * (
                depth**-0.5 if "c_proj" in path else 1.0
            )
            at_base = carried(base, row.base_name.removesuffix(".weight"))
            assert carried(plan, path) / at_base == pytest.approx(forward), row.name


def carried(plan: mt.Plan, module: str) -> float:
    """The product of the multipliers that hooks carry on one module."""
    return math.prod(hook.factor for hook in plan.hooks if hook.module == module)


def test_the_residual_rule_of_u_mup_is_one_over_the_root_of_depth() -> None:
    """Its running sum x ← (τ·f + x)/√(1 + τ²) with τ² = 1/(n/2 + l) (appendix G, α = 1; n branches) is x ← x + f·√(2/n), rescaled."""
    for branches in (4, 12, 30):
        scale, found = 1.0, []
        for index in range(branches):
            tau = (1 / (branches / 2 + index)) ** 0.5
            found.append(tau * scale)
            scale *= math.sqrt(1 + tau**2)
        assert found == pytest.approx([math.sqrt(2 / branches)] * branches)
