"""Initial values: the base's law at std · ratio, for every law and way of writing it; draws that no sharding changes (theory §3)."""

import math
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.init import orthogonal_, trunc_normal_  # by name on purpose: before anything can watch them

import mutransfer as mt
from mutransfer.draw import fill
from mutransfer.laws import Law, measure
from mutransfer.models import gpt_factory, mlp_factory, resnet_factory
from mutransfer.train.ranks import leave
from tests.plan_cases import build, values

N = 4


class Net(nn.Module):
    """Input, hidden, head, and a norm; `init` is how its author initialises the hidden matrix."""

    def __init__(self, width: int, init: Callable[[nn.Linear], object] | None = None) -> None:
        super().__init__()
        self.input, self.hidden = nn.Linear(16, width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 8)
        if init is not None:
            with torch.no_grad():
                init(self.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.relu(self.hidden(torch.relu(self.input(x))))))


def numpy_made(layer: nn.Linear) -> None:
    shape = tuple(layer.weight.shape)
    layer.weight.copy_(torch.from_numpy(numpy.random.default_rng(0).normal(0.0, 0.03, shape)).float())


def assigned_data(layer: nn.Linear) -> None:
    layer.weight.data = torch.randn(layer.weight.shape) * 0.03


def assigned_numpy(layer: nn.Linear) -> None:
    layer.weight.data = torch.from_numpy(numpy.random.normal(0.0, 0.03, tuple(layer.weight.shape)).astype("float32"))


def new_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.rand(layer.weight.shape) * 0.2 - 0.1)


def over_named_parameters(layer: nn.Linear) -> None:
    for name, p in layer.named_parameters():
        nn.init.zeros_(p) if name == "bias" else nn.init.normal_(p, std=0.03)


def seeded(layer: nn.Linear) -> None:
    torch.manual_seed(7)
    random.seed(7)
    numpy.random.seed(7)
    nn.init.normal_(layer.weight, std=0.03)


def python_numbers(layer: nn.Linear) -> None:
    rows, columns = layer.weight.shape
    layer.weight.copy_(torch.tensor([[random.gauss(0.0, 0.03) for _ in range(columns)] for _ in range(rows)]))


def masked(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=0.03)
    layer.weight.mul_(torch.rand_like(layer.weight) < 0.5)


# the std of the hidden matrix that each author's code gives, as a function of the width
AUTHORS: dict[str, tuple[Callable[[nn.Linear], object] | None, Callable[[int], float]]] = {
    "torch's default": (None, lambda n: 1 / math.sqrt(3 * n)),
    "constant std": (lambda m: nn.init.normal_(m.weight, std=0.02), lambda n: 0.02),
    "kaiming": (lambda m: nn.init.kaiming_normal_(m.weight), lambda n: math.sqrt(2 / n)),
    "xavier uniform": (lambda m: nn.init.xavier_uniform_(m.weight), lambda n: 1 / math.sqrt(n)),
    "truncated": (lambda m: nn.init.trunc_normal_(m.weight, std=0.1, a=-0.2, b=0.2), lambda n: 0.0879626),
    "truncated, by name": (lambda m: trunc_normal_(m.weight, std=0.1, a=-0.2, b=0.2), lambda n: 0.0879626),
    "orthogonal": (lambda m: nn.init.orthogonal_(m.weight, gain=2.0), lambda n: 2 / math.sqrt(n)),
    "orthogonal, by name": (lambda m: orthogonal_(m.weight, gain=2.0), lambda n: 2 / math.sqrt(n)),
    "zeros": (lambda m: nn.init.zeros_(m.weight), lambda n: 0.0),
    "1/n": (lambda m: m.weight.normal_().div_(m.weight.shape[1]), lambda n: 1 / n),
    "numpy": (numpy_made, lambda n: 0.03),
    ".data = randn": (assigned_data, lambda n: 0.03),
    ".data = numpy": (assigned_numpy, lambda n: 0.03),
    "a new Parameter": (new_parameter, lambda n: 0.2 / math.sqrt(12)),
    "loop over names": (over_named_parameters, lambda n: 0.03),
    "seeds inside": (seeded, lambda n: 0.03),
    "python numbers": (python_numbers, lambda n: 0.03),
    "masked": (masked, lambda n: 0.03 / math.sqrt(2)),
}


@pytest.mark.parametrize("material", ["meta", "real", "redrawn"])
@pytest.mark.parametrize("author", AUTHORS)
def test_the_targets_std_is_the_bases_times_root_of_the_ratio(author: str, material: str) -> None:
    """Whatever the target's own code would have drawn: hidden `σ_base · N^-½`, head absorbed `σ_base / N`, the rest as the base."""
    init, std = AUTHORS[author]
    n = 64

    def make(width: int) -> nn.Module:
        return Net(width, init)

    plan = mt.plan(make, base=dict(width=n), target=dict(width=N * n))
    if material == "meta":
        with torch.device("meta"):
            model = Net(N * n)
    else:
        model = build(make, dict(width=N * n))
    plan.initialize(model, seed=1, redraw=material == "redrawn")
    found = {name: measure(p) for name, p in model.named_parameters()}
    assert found["hidden.weight"].std == pytest.approx(std(n) / math.sqrt(N), rel=0.03, abs=1e-12)
    assert found["head.weight"].std == pytest.approx(1 / math.sqrt(3 * n) / N, rel=0.06)
    assert found["input.weight"].std == pytest.approx(1 / math.sqrt(3 * 16), rel=0.06)
    bias = (
        0.0 if author == "loop over names" else 1 / math.sqrt(3 * n)
    )  # a fan-in law at the base: the same number at the target
    assert found["hidden.bias"].std == pytest.approx(bias, rel=0.2)
    assert 0.3 < found["head.bias"].std * math.sqrt(3 * n) < 1.7
    own_head = measure(build(make, dict(width=N * n)).head.bias).std
    assert material != "real" or found["head.bias"].std == pytest.approx(math.sqrt(N) * own_head)
    assert found["norm.weight"] == Law("constant", 1.0) and found["norm.bias"].zeros
    if "orthogonal" in author:
        singular = torch.linalg.svdvals(model.hidden.weight.detach())
        assert singular.min() == pytest.approx(2.0, rel=1e-3) and singular.max() == pytest.approx(2.0, rel=1e-3)
    if "truncated" in author and material != "real":
        assert model.hidden.weight.abs().max() <= 0.2 / math.sqrt(N)


@pytest.mark.parametrize("author", AUTHORS)
def test_at_ratio_one_no_authors_draw_changes_a_bit(author: str) -> None:
    init, _ = AUTHORS[author]
    plan = mt.plan(lambda width: Net(width, init), base=dict(width=24), target=dict(width=24))
    model = build(lambda width: Net(width, init), dict(width=24))
    before = values(model)
    plan.initialize(model, seed=1)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [2, 3, 4, 7])
def test_code_that_already_follows_the_rule_keeps_every_bit(ratio: int, dtype: torch.dtype) -> None:
    """torch's default hidden matrices shrink like 1/√fan_in by themselves; so do He's, and orthogonal ones."""
    for init in (None, lambda m: nn.init.kaiming_normal_(m.weight), lambda m: nn.init.orthogonal_(m.weight)):

        def make(width: int, init=init) -> nn.Module:
            return Net(width, init).to(dtype)

        plan = mt.plan(make, base=dict(width=24), target=dict(width=24 * ratio))
        model = build(make, dict(width=24 * ratio))
        before = values(model)
        plan.initialize(model)
        assert torch.equal(before["hidden.weight"], model.hidden.weight)
        assert not torch.equal(before["head.weight"], model.head.weight)


class Guarded(nn.Module):
    """Its author draws nothing on meta, as some libraries do; 4.2 M numbers at the base, too many to draw for a plan."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input, self.hidden, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 2)
        if not self.hidden.weight.is_meta:
            with torch.no_grad():
                nn.init.normal_(self.hidden.weight, std=0.03)
                orthogonal_(self.head.weight, gain=3.0)


def test_code_that_skips_meta_is_read_on_the_cpu_without_being_run() -> None:
    plan = mt.plan(Guarded, base=dict(width=2048), target=dict(width=4096))
    assert plan["hidden.weight"].base_law == Law("normal", 0.0, 0.03)
    assert plan["head.weight"].base_law == Law("orthogonal", 0.0, 3.0 / math.sqrt(2048))
    assert plan["hidden.weight"].target_law.kind == "unknown"
    assert plan["input.weight"].base_law.std == pytest.approx(1 / math.sqrt(3 * 4))
    model = plan.initialize(build(Guarded, dict(width=4096)))
    assert measure(model.hidden.weight).std == pytest.approx(0.03 / math.sqrt(2), rel=0.01)


def test_what_a_small_guarded_model_draws_is_its_exact_law_at_both_sizes() -> None:
    """The draw that confirms a small base is recorded too: where its values agree, no estimate from a sample is needed."""
    plan = mt.plan(Guarded, base=dict(width=32), target=dict(width=64))
    for law in ("base_law", "target_law"):
        assert getattr(plan["hidden.weight"], law) == Law("normal", 0.0, 0.03)
    assert plan["head.weight"].base_law == Law("orthogonal", 0.0, 3.0 / math.sqrt(32))
    assert plan["head.weight"].target_law == Law("orthogonal", 0.0, 3.0 / math.sqrt(64))


def test_one_number_keeps_its_law() -> None:
    """A bias of one number shows no spread, and is no constant for that: another seed draws another one."""

    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 1, 1))

    plan = mt.plan(make, base=dict(width=16), target=dict(width=64))
    assert plan["2.bias"].base_law.kind == "uniform" and plan["2.bias"].base_law.std == pytest.approx(1 / math.sqrt(48))
    one, two = (plan.initialize(make(64), seed, redraw=True)[2].bias.item() for seed in (0, 1))
    assert one != two


def test_an_init_that_holds_the_depth_is_rebased_not_counted_twice() -> None:
    """GPT-2's `σ/√(2·n_layer)` at the target's depth is ignored: the base's own number times 1/L and N^-½ (theory §7)."""
    make = gpt_factory(vocab_size=17, context=8, head_size=8, residual_init="scaled")
    plan = mt.plan(make, base=dict(width=32, depth=2), target=dict(width=128, depth=8), recipe="completep")
    model = plan.initialize(build(make, dict(width=128, depth=8)))
    want = 0.02 / math.sqrt(2 * 2) / math.sqrt(4) / 4
    found = [measure(block.mlp.down.weight).std for block in model.blocks]
    assert found == pytest.approx([want] * 8, rel=0.03)


def test_a_tied_head_is_absorbed_by_the_final_gain_and_the_tie_survives() -> None:
    make = gpt_factory(vocab_size=17, context=8, head_size=8, tied=True)
    plan = mt.plan(make, base=dict(width=16), target=dict(width=64))
    for model in (build(make, dict(width=64)), on_meta(make, width=64)):
        plan.initialize(model)
        assert model.head.weight is model.wte.weight
        assert torch.equal(model.norm_f.weight, torch.full((64,), 0.25))
        assert measure(model.wte.weight).std == pytest.approx(0.02, rel=0.1)
        assert sum(len(g["params"]) for g in plan.groups(model, lr=1.0)) == len(list(model.parameters()))


def on_meta(make: Callable[..., nn.Module], **sizes: int) -> nn.Module:
    with torch.device("meta"):
        return make(**sizes)


def test_a_partly_materialised_model_keeps_what_is_real() -> None:
    plan = mt.plan(Net, base=dict(width=16), target=dict(width=64))
    model = on_meta(Net, width=64)
    torch.manual_seed(0)
    model.head = nn.Linear(64, 8)
    own = model.head.weight.detach().clone()
    plan.initialize(model)
    assert torch.allclose(
        model.head.weight, own / own.std() * measure(own).std * plan["head.weight"].ratios.std * 2, rtol=0.1
    )
    assert (model.head.weight * own > 0).all() and not any(p.is_meta for p in model.parameters())


def test_batch_norm_on_meta_starts_with_its_own_statistics() -> None:
    make = resnet_factory(classes=5, blocks=(1, 1))
    plan = mt.plan(make, base=dict(width=8), target=dict(width=16))
    model = plan.initialize(on_meta(make, width=16))
    assert torch.equal(model.bn1.running_var, torch.ones(16)) and torch.equal(model.bn1.running_mean, torch.zeros(16))


def test_a_buffer_on_meta_that_only_the_user_knows_is_named() -> None:
    class WithMask(Net):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.register_buffer("mask", torch.ones(4, 4).tril())

    plan = mt.plan(WithMask, base=dict(width=16), target=dict(width=32))
    with pytest.raises(mt.PlanError, match="'mask'"):
        plan.initialize(on_meta(WithMask, width=32))
    plan.initialize(WithMask(32))


def test_a_padding_row_stays_zero() -> None:
    class Padded(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, width, padding_idx=3), nn.Linear(width, 5)

    plan = mt.plan(Padded, base=dict(width=8), target=dict(width=16))
    for model in (plan.initialize(on_meta(Padded, width=16)), plan.initialize(build(Padded, dict(width=16)))):
        assert torch.equal(model.table.weight[3], torch.zeros(16)) and (model.table.weight[4] != 0).all()


def test_planning_leaves_every_random_state_alone() -> None:
    """torch, numpy and Python: a factory that seeds and draws changes nothing of the user's."""

    def make(width: int) -> nn.Module:
        random.random(), numpy.random.rand(3)
        return Net(width, seeded)

    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    want = torch.rand(3), random.random(), numpy.random.rand(3)
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    plan = mt.plan(make, base=dict(width=16), target=dict(width=32))
    plan.initialize(on_meta(Net, width=32), seed=9)
    found = torch.rand(3), random.random(), numpy.random.rand(3)
    assert torch.equal(want[0], found[0]) and want[1] == found[1] and (want[2] == found[2]).all()


# ------------------------------------------------------------------ draws

LAWS = [
    (Law("normal", 0.0, 0.5), 3.0),
    (Law("normal", 2.0, 0.5), 3.0),
    (Law("uniform", 0.0, 0.2), 1.8),
    (Law("uniform", 0.5, 0.2), 1.8),
    (Law("truncated", 0.0, 0.0879626, 2.0), 2.3655),
]


@pytest.mark.parametrize(("law", "kurtosis"), LAWS)
def test_draws_have_the_moments_of_their_law(law: Law, kurtosis: float) -> None:
    x = torch.empty(400, 500, dtype=torch.float64)
    fill(x, law, seed=3, name="w")
    error = law.std / math.sqrt(x.numel())
    centred = x - law.mean
    assert abs(float(centred.mean())) < 4 * error
    assert float(x.std()) == pytest.approx(law.std, rel=0.008)
    assert float((centred / law.std).pow(4).mean()) == pytest.approx(kurtosis, rel=0.03)
    assert x.unique().numel() == x.numel()


def test_draws_of_other_names_seeds_and_rows_are_independent() -> None:
    drawn = []
    for seed, name in ((0, "a"), (0, "b"), (1, "a"), (0, "blocks.0.w"), (0, "blocks.1.w")):
        x = torch.empty(100, 500, dtype=torch.float64)
        fill(x, Law("normal", 0.0, 1.0), seed=seed, name=name)
        drawn += [x.flatten(), x.t().flatten(), x.roll(1).flatten(), x.abs().flatten() - x.abs().mean()]
    correlations = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0)
    assert correlations.abs().max() < 5 / math.sqrt(50_000)


@pytest.mark.parametrize("kind", ["normal", "uniform", "truncated", "orthogonal"])
def test_any_part_of_a_tensor_has_the_values_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law = Law(kind, 0.0, 0.1, 2.0 if kind == "truncated" else 0.0)  # type: ignore[arg-type]  # parametrised
    whole = torch.empty(37, 6, 5)
    fill(whole, law, seed=1, name="w")
    part = torch.empty(9, 3, 5)
    fill(part, law, seed=1, name="w", shape=whole.shape, offset=(20, 2, 0))
    assert torch.equal(part, whole[20:29, 2:5])
    monkeypatch.setattr("mutransfer.draw._CHUNK", 64)
    again = torch.empty(37, 6, 5)
    fill(again, law, seed=1, name="w")
    assert torch.equal(again, whole)
    column = torch.empty(37 * 30)
    fill(column, law, seed=2, name="v")
    assert column.unique().numel() > 1 and not torch.equal(column[: whole.numel()], whole.flatten()[: column.numel()])


# ------------------------------------------------------------------ sharded and wrapped, in real processes


def sharded_worker(rank: int, port: int, folder: str, make: Callable[..., nn.Module], plan: mt.Plan) -> None:
    """One of two gloo processes: FSDP2 from meta and from real weights, DDP; each saves what it holds as whole tensors."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        found = {}
        for material in ("meta", "real"):
            model = on_meta(make, width=48) if material == "meta" else make(width=48)
            for block in model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            plan.initialize(model, seed=4)
            found[material] = {name: p.full_tensor() for name, p in model.named_parameters()}
        ids = torch.randint(17, (2, 8), generator=torch.Generator().manual_seed(rank))
        model(ids).logsumexp(-1).mean().backward()
        found["norm"] = plan.clip_grad_norm_(model, 1e9)
        optimizer = plan.optimizer(model, lr=0.01)
        plan.verify(optimizer, model)
        optimizer.step()
        plain = nn.parallel.DistributedDataParallel(plan.initialize(make(width=48), seed=4, redraw=True))
        found["ddp"] = {name.removeprefix("module."): p.detach() for name, p in plain.named_parameters()}
        plan.verify(plan.optimizer(plain, lr=0.01), plain)
        plain(ids).logsumexp(-1).mean().backward()
        found["ddp norm"] = plan.clip_grad_norm_(plain, 1e9)
        if rank == 0:
            torch.save(found, Path(folder) / "found.pt")
        leave(0)
    finally:
        dist.destroy_process_group()


def test_sharded_models_get_the_values_of_the_whole_model(tmp_path: Path) -> None:
    """FSDP2 on two real processes, from meta and from real weights, and DDP: the same numbers as one process on its own."""
    make = gpt_factory(vocab_size=17, context=8, head_size=8, bias=True)  # 17 rows do not divide by 2
    plan = mt.plan(make, base=dict(width=16, depth=2), target=dict(width=48, depth=4), recipe="completep")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(sharded_worker, args=(port, str(tmp_path), make, plan), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    alone = plan.initialize(make(width=48), seed=4, redraw=True)
    for kind in ("meta", "real", "ddp"):
        assert {name for name, _ in alone.named_parameters()} == set(found[kind])
        assert all(torch.equal(found[kind][name], p) for name, p in alone.named_parameters()), kind
    assert float(found["norm"]) == pytest.approx(float(found["ddp norm"]), rel=1e-5) and found["norm"] > 0


@pytest.mark.parametrize(
    "make", [mlp_factory(inputs=12, outputs=5), gpt_factory(vocab_size=17, context=8, head_size=8)]
)
def test_meta_and_redrawn_models_are_the_same_for_one_seed(make: Callable[..., nn.Module]) -> None:
    plan = mt.plan(make, base=dict(width=16), target=dict(width=64))
    one, two = plan.initialize(on_meta(make, width=64), seed=2), plan.initialize(make(width=64), seed=2, redraw=True)
    other = plan.initialize(on_meta(make, width=64), seed=3)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_an_unreadable_law_is_an_error_where_it_is_needed_and_rescaled_where_it_is_not() -> None:
    base, target = on_meta(Net, width=16), Net(64)
    plan = mt.plan(target, base=base)
    with pytest.raises(mt.PlanError, match=r"input.weight.*could not be read"):
        plan.initialize(on_meta(Net, width=64))
