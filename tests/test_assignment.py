"""Which optimizer runs which tensor: the same at every size, by place or pattern, matrices one by one, routers never by Muon."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.models import gpt_factory
from mutransfer.muon import Muon, orthogonalize
from tests.plan_cases import build

GPT = gpt_factory(vocab_size=17, context=8, head_size=8)
SMALL, BIG = dict(width=16, depth=2), dict(width=48, depth=2)


class Experts(nn.Module):
    """A soft mixture: a router (n → E), stacked experts (E, n, 4n) and (E, 4n, n)."""

    def __init__(self, n: int, count: int) -> None:
        super().__init__()
        self.router = nn.Linear(n, count, bias=False)
        self.up = nn.Parameter(torch.randn(count, n, 4 * n) / n**0.5)
        self.down = nn.Parameter(torch.randn(count, 4 * n, n) / (4 * n) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        each = torch.einsum("ebf,efn->ebn", F.relu(torch.einsum("bn,enf->ebf", x, self.up)), self.down)
        return torch.einsum("be,ebn->bn", shares, each)


class Separate(nn.Module):
    def __init__(self, n: int, count: int) -> None:
        super().__init__()
        self.gate = nn.Linear(n, count, bias=False)
        self.experts = nn.ModuleList(nn.Linear(n, n) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)
        return torch.stack([expert(x) for expert in self.experts], -1).mul(shares[:, None]).sum(-1)


class Mixed(nn.Module):
    """An input, blocks of experts of both kinds, a fused QKV, a head."""

    def __init__(self, width: int, depth: int = 2, count: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.qkv = nn.Linear(width, 3 * width, bias=False)
            block.moe, block.flat = Experts(width, count), Separate(width, count)
            self.blocks.append(block)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            q, k, v = block.qkv(x).chunk(3, -1)
            x = x + q * torch.sigmoid(k) + v
            x = x + block.moe(F.normalize(x)) + block.flat(F.normalize(x))
        return self.head(x)


TOLD: dict[str, Any] = dict(axes={"*.up": "stack in out", "*.down": "stack in out"}, head_size=(8, 8))


def runs(target: dict[str, int], **options: Any) -> dict[str, str]:
    plan = mt.plan(Mixed, base=dict(width=16), target=target, **TOLD, **options)
    return {row.name: row.optimizer for row in plan.rows}


def test_experts_run_under_muon_and_routers_do_not_at_every_size() -> None:
    found = [runs(dict(width=width), optimizer="muon") for width in (16, 64)]
    assert found[0] == found[1]
    muon = {
        name.removeprefix("blocks.0.")
        for name, optimizer in found[0].items()
        if optimizer == "muon" and "blocks.0" in name
    }
    assert muon == {"qkv.weight", "moe.up", "moe.down", *(f"flat.experts.{i}.weight" for i in range(4))}


def test_each_expert_and_each_fused_matrix_is_orthogonalised_alone() -> None:
    """The update of a stack or a fused tensor is what each of its matrices would get as a tensor of its own."""
    plan = mt.plan(Mixed, base=dict(width=16), target=dict(width=32), **TOLD, optimizer="muon")
    torch.manual_seed(0)
    model = plan.initialize(Mixed(32))
    optimizer = plan.optimizer(model, lr=0.1, weight_decay=0.0, dtype="float32")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(64, 6)).square().sum().backward()
    optimizer.step()
    after, lr = (
        dict(model.named_parameters()),
        {n: group["lr"] for group in optimizer.param_groups for n in group["names"]},
    )
    for name, split in (("blocks.0.moe.up", lambda t: t.unbind(0)), ("blocks.0.qkv.weight", lambda t: t.chunk(3, 0))):
        rows = zip(split(before[name]), split(after[name].detach()), split(after[name].grad), strict=True)
        for old, new, gradient in rows:
            scale = 2.0 if name.endswith("up") else 1.0  # √max(1, out/in) of each alone: 32 → 128, and 32 → 32
            due = -lr[name] * scale * orthogonalize(gradient, dtype="float32")
            assert torch.linalg.norm(new - old - due) < 2e-3 * torch.linalg.norm(due), name
    assert plan["blocks.0.qkv.weight"].parts == (32, 32, 32)


def test_fused_sizes_are_told_by_name_by_shape_or_by_the_user() -> None:
    class Fused(nn.Module):
        def __init__(self, width: int, name: str, rows: int) -> None:
            super().__init__()
            self.a = nn.Linear(5, width)
            self.block = nn.ModuleList([nn.ModuleDict({name: nn.Linear(width, rows * width // 16)}) for _ in range(2)])
            self.z = nn.Linear(width, 3)

    def parts(name: str, rows: int, **options: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
        plan = mt.plan(
            lambda width: Fused(width, name, rows),
            base=dict(width=16),
            target=dict(width=64),
            optimizer="muon",
            head_size=(8, 8),
            **options,
        )
        return plan[f"block.0.{name}.weight"].parts, plan.notes

    assert parts("c_attn", 48)[0] == (64, 64, 64)
    assert parts("qkv_proj", 24)[0] == (64, 16, 16)  # grouped queries
    assert parts("gate_up_proj", 64)[0] == (128, 128)
    assert parts("up", 64) == ((), ())
    assert parts("up", 64, fused={"*.up.weight": (3, 1)})[0] == (192, 64)
    assert parts("c_attn", 48, fused={"*.c_attn.weight": 1})[0] == ()
    mixed, notes = parts("query_key_value", 48)
    assert mixed == () and any("head by head" in note for note in notes)
    unsure, notes = parts("qkv", 15)
    assert unsure == () and any("fused=" in note for note in notes)


@pytest.mark.parametrize(
    ("fused", "message"),
    [
        ({"*.nothing": 3}, "matches no tensor"),
        ({"blocks.0.qkv.weight": 5}, "does not divide"),
        ({"blocks.0.qkv.weight": 0}, "number of equal matrices"),
        ({"blocks.0.qkv.weight": "three"}, "number of equal matrices"),
        (3, "write patterns"),
        ({"enter.bias": 3}, "names no matrix"),
    ],
)
def test_wrong_fused_is_one_line(fused: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mt.plan(Mixed, base=dict(width=16), target=dict(width=32), **TOLD, optimizer="muon", fused=fused)


def test_any_split_by_place_or_pattern_is_the_same_at_every_size() -> None:
    split = {"*.attn.*": "muon-kimi", "hidden": "muon-uvt", "output": "sgd", "vector": "lion", "*": "adamw"}
    found = [
        {row.name: row.optimizer for row in mt.plan(GPT, base=SMALL, target=size, optimizer=split).rows}
        for size in (SMALL, BIG)
    ]
    assert found[0] == found[1]
    places = {
        "wte.weight": "adamw", "head.weight": "sgd", "norm_f.weight": "lion", "blocks.1.norm1.weight": "lion",
        "blocks.0.attn.q_proj.weight": "muon-kimi", "blocks.0.mlp.down.weight": "muon-uvt",
    }  # fmt: skip
    assert {name: found[0][name] for name in places} == places


def test_a_split_gives_each_tensor_the_ratios_of_its_own_optimizer() -> None:
    split = mt.plan(GPT, base=SMALL, target=BIG, optimizer={"hidden": "muon-kimi", "*": "sgd"})
    alone = {name: mt.plan(GPT, base=SMALL, target=BIG, optimizer=name) for name in ("muon-kimi", "sgd")}
    for row in split.rows:
        assert row.ratios == alone[row.optimizer][row.name].ratios, row.name
    assert {row.optimizer for row in split.rows} == {"muon-kimi", "sgd"}


def test_a_split_survives_saving_and_drives_classes_of_the_user(tmp_path: Any) -> None:
    plan = mt.plan(
        GPT, base=SMALL, target=BIG, optimizer={"hidden": torch.optim.Muon, "vector": torch.optim.SGD, "*": "adamw"}
    )
    plan.save(tmp_path / "plan.json")
    assert mt.Plan.load(tmp_path / "plan.json") == plan
    model = build(GPT, BIG)
    optimizer: Any = plan.optimizer(plan.initialize(model), lr=0.01)
    assert [type(part) for part in optimizer.parts] == [torch.optim.AdamW, torch.optim.SGD, torch.optim.Muon]
    assert plan.verify(optimizer, model)["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({}, "write places or patterns"),
        ({"hidden": "muon"}, r"'wte\.weight' \(input\) without an optimizer; add '\*'"),
        ({"hiden": "muon", "*": "adamw"}, "did you mean 'hidden'"),
        ({"*.nothing": "muon", "*": "adamw"}, "matches no tensor"),
        ({"*": "muon"}, r"'wte\.weight' has shape \(17, 48\).*axes=\{'wte\.weight': 'out in'\}"),
        ({"vector": "muon", "*": "adamw"}, "function of a matrix"),
        ({"hidden": "muuon", "*": "adamw"}, "did you mean 'muon'"),
        ({3: "muon", "*": "adamw"}, "write a place"),
        ({"*": "adamw", "hidden": "muon"}, "never acts: '\\*' stands before it"),
    ],
)
def test_a_wrong_split_is_one_line(optimizer: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        mt.plan(GPT, base=SMALL, target=BIG, optimizer=optimizer)
    assert "\n" not in str(caught.value)


def test_the_engine_is_torchs_by_class_ours_by_name_on_a_cpu_and_never_silent() -> None:
    by_name = mt.plan(GPT, base=SMALL, target=BIG, optimizer="muon")
    by_class = mt.plan(GPT, base=SMALL, target=BIG, optimizer=torch.optim.Muon)
    model = build(GPT, BIG)

    def engine(plan: mt.Plan, **settings: Any) -> Any:
        made: Any = plan.optimizer(model, lr=0.1, **settings)
        return next(type(part) for part in made.parts if "Muon" in type(part).__name__)

    assert engine(by_name) is Muon and engine(by_name, engine="torch") is torch.optim.Muon
    assert engine(by_class) is torch.optim.Muon
    assert engine(by_name, coefficients="polar-express") is Muon
    with pytest.raises(InputError, match="'auto', 'torch' or 'own'"):
        engine(by_name, engine="fast")
    stacked = mt.plan(Mixed, base=dict(width=16), target=dict(width=32), **TOLD, optimizer="muon")
    with pytest.raises(InputError, match=r"takes two axes, 'blocks\.0\.moe\.up'|it holds 3"):
        stacked.optimizer(Mixed(32), lr=0.1, engine="torch")
    with pytest.raises(InputError, match="scale is part of the plan"):
        by_name.optimizer(model, lr=0.1, scale="1")


@pytest.mark.parametrize("name", ["muon-uvt", "muon", "muon-spectral", "muon-kimi"])
def test_both_engines_make_the_same_step(name: str) -> None:
    """torch's built-in factor is divided out of LR and decay: the weights after a step agree to bfloat16 rounding."""
    plan = mt.plan(GPT, base=SMALL, target=BIG, optimizer=name)
    ends = []
    for engine in ("torch", "own"):
        model = plan.initialize(build(GPT, BIG), seed=0)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():  # of full rank: rounding in directions that a gradient lacks is amplified
            p.grad = torch.randn(p.shape, generator=generator)
        precision = {"dtype": "bfloat16"} if engine == "own" else {}
        plan.optimizer(model, lr=0.02, weight_decay=0.1, engine=engine, **precision).step()
        ends.append({n: p.detach() - start[n] for n, p in model.named_parameters()})
    for row in plan.rows:
        torch_step, own_step = (end[row.name] for end in ends)
        error = torch.linalg.norm(torch_step - own_step) / torch.linalg.norm(torch_step)
        assert error < (0.04 if row.optimizer == name else 1e-6), row.name


def test_settings_of_one_optimizer_of_the_mix() -> None:
    plan = mt.plan(GPT, base=SMALL, target=BIG, optimizer={"hidden": "muon", "*": "sgd"})
    model = build(GPT, BIG)
    made: Any = plan.optimizer(model, lr=0.1, each={"sgd": {"momentum": 0.5}, "muon": {"momentum": 0.8}})
    assert {group["optimizer"]: group["momentum"] for group in made.param_groups} == {"sgd": 0.5, "muon": 0.8}
    with pytest.raises(InputError, match="the plan's optimizers are"):
        plan.optimizer(model, lr=0.1, each={"adamw": {}})
    with pytest.raises(InputError, match="take no 'betas'"):
        plan.optimizer(model, lr=0.1, each={"sgd": {"betas": (0.9, 0.9)}})
    with pytest.raises(InputError, match="overrides="):
        plan.optimizer(model, lr=0.1, each={"sgd": {"lr": 0.1}})


def test_fused_matrices_get_the_ratios_that_they_would_have_alone() -> None:
    """√max(1, out/in) of each of three matrices, not of the tensor that holds them: they part where fan-in outgrows fan-out."""

    class Wide(nn.Module):
        def __init__(self, n: int, fused: bool) -> None:
            super().__init__()
            self.a, self.z = nn.Linear(5, n * n // 16), nn.Linear(n, 3)
            self.block = nn.ModuleList(
                nn.ModuleDict(
                    {"qkv": nn.Linear(n * n // 16, 3 * n)} if fused else {k: nn.Linear(n * n // 16, n) for k in "qkv"}
                )
                for _ in range(2)
            )

    rows = []
    for fused in (True, False):
        plan = mt.plan(
            lambda width, fused=fused: Wide(width, fused), base=dict(width=16), target=dict(width=64), optimizer="muon",
            head_size=(8, 8), fused={"*.qkv.weight": 3} if fused else None,
        )  # fmt: skip
        rows.append(plan[f"block.0.{'qkv' if fused else 'q'}.weight"])
    assert rows[0].parts == (64, 64, 64) and rows[0].ratios == rows[1].ratios


def test_how_one_optimizer_of_a_mix_decays_is_nobody_elses_business() -> None:
    """Adam told to decouple keeps lr·wd; SGD beside it still adds L2 to its gradients, which goes like 1/lr."""
    plan = mt.plan(GPT, base=SMALL, target=BIG, optimizer={"hidden": "adam", "*": "sgd"})
    made: Any = plan.optimizer(
        build(GPT, BIG), lr=0.1, weight_decay=0.1, each={"adam": {"decoupled_weight_decay": True}}
    )
    for group in made.param_groups:
        ratios = plan[group["names"][0]].ratios
        due = ratios.decay if group["optimizer"] == "adam" else ratios.l2
        assert group["weight_decay"] == pytest.approx(0.1 * due)
    assert plan.verify(made)["lr"] == pytest.approx(0.1)


def test_relative_sizes_that_cannot_hold_at_both_sizes_are_refused() -> None:
    """A fixed number of key/value heads: (2, 1, 1) at the base would cut the target's 80 rows into 40, 20, 20."""

    class Fixed(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.a, self.z = nn.Linear(5, n), nn.Linear(n, 3)
            self.block = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(n, n + 16)}) for _ in range(2))

    def fixed(**options: Any) -> mt.Plan:
        return mt.plan(
            lambda width: Fixed(width),
            base=dict(width=16),
            target=dict(width=64),
            optimizer="muon",
            head_size=(8, 8),
            **options,
        )

    with pytest.raises(InputError, match=r"rows grow ×2\.5 and its inputs ×4"):
        fixed(fused={"*.qkv.weight": (2, 1, 1)})
    assert fixed()["block.0.qkv.weight"].parts == () and any("different factors" in note for note in fixed().notes)
    assert fixed(fused={"*.qkv.weight": 1})["block.0.qkv.weight"].parts == ()


def test_the_class_that_was_given_runs() -> None:
    """SparseAdam has Adam's facts and is not Adam; a decay per step has no meaning where decay is added to gradients."""
    plan = mt.plan(GPT, base=SMALL, target=BIG, optimizer=torch.optim.SparseAdam)
    assert type(plan.optimizer(build(GPT, BIG), lr=0.1)) is torch.optim.SparseAdam
    coupled = mt.plan(GPT, base=SMALL, target=BIG, optimizer="adam", recipe="independent-decay")
    with pytest.raises(InputError, match="adds its weight_decay to the gradient"):
        coupled.optimizer(build(GPT, BIG), lr=0.1, weight_decay=1e-4)
    assert coupled.optimizer(build(GPT, BIG), lr=0.1, weight_decay=1e-4, decoupled_weight_decay=True)
