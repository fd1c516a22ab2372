"""`mt.grow` as one call: every way to hand over a plan, optimizers, schedules and averages; what it refuses; what it leaves alone."""

import copy
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from mutransfer import hooks
from mutransfer.models import gpt_factory, mlp_factory
from mutransfer.train.ranks import leave

VOCABULARY, LENGTH, STEPS = 32, 8, 12
SIZES: dict[str, Any] = dict(vocab_size=VOCABULARY, context=LENGTH, head_size=8, depth=2)
Batch = tuple[Tensor, Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def batches(count: int = STEPS) -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    ids = [torch.randint(VOCABULARY, (2, 4, LENGTH), generator=g) for _ in range(count)]
    return [(x, y) for x, y in ids]


def train(model: nn.Module, optimizers: Any, data: list[Batch], clip: Any = None, scheduler: Any = None) -> Tensor:
    """One step per batch; the outputs on the first batch."""
    every = optimizers if isinstance(optimizers, list) else [optimizers]
    for batch in data:
        for optimizer in every:
            optimizer.zero_grad()
        loss(model, batch).backward()
        if clip is not None:
            clip(model)
        for optimizer in every:
            optimizer.step()
        if scheduler is not None:
            scheduler.step()
    with torch.no_grad():
        return model(data[0][0])


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def drawn(make: Any, seed: int = 0, **sizes: int) -> Any:
    torch.manual_seed(seed)
    model = make(**sizes).double()
    with torch.no_grad():
        for p in model.parameters():  # gains and embeddings away from their special values
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
def test_the_user_s_plan_from_a_smaller_base(placement: str, tied: bool) -> None:
    """base 8 → small 16 → big 48: one base lr for all, the plan of the big model verifies its optimizer, and the path is one."""
    make = gpt_factory(**SIZES, tied=tied)
    settings: dict[str, Any] = dict(lr=1e-2, weight_decay=0.3, eps=1e-2)
    of = {w: mt.plan(make, base=dict(width=8), target=dict(width=w), placement=placement) for w in (16, 48)}
    small = of[16].attach(drawn(make, width=16))
    optimizer = of[16].optimizer(small, **settings)
    train(small, optimizer, batches(), lambda m: of[16].clip_grad_norm_(m, 0.1))
    big, big_optimizer, record = mt.grow(
        small, optimizer, to=make(width=48).double(), plan=of[48], batches=batches(), loss=loss, show=False
    )
    assert record.plan.exact and of[48].verify(big_optimizer, big)["lr"] == pytest.approx(1e-2)
    fresh = of[48].optimizer(copy.deepcopy(big), **settings)
    rates = {n: g["lr"] for g in fresh.param_groups for n in g["names"]}
    assert {n: pytest.approx(g["lr"]) for g in big_optimizer.param_groups for n in g["names"]} == rates
    a = train(small, optimizer, batches(), lambda m: of[16].clip_grad_norm_(m, 0.1))
    b = train(big, big_optimizer, batches(), lambda m: of[48].clip_grad_norm_(m, 0.1))
    assert_same(b, a)


def test_growing_twice_is_growing_once() -> None:
    make = gpt_factory(**SIZES, tied=True, norm="rmsnorm", norm_gain=False)  # a hook carries the head's multiplier
    small = drawn(make, width=16)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2, eps=1e-3)
    train(small, optimizer, batches())
    once, one, _ = mt.grow(small, optimizer, to=make(width=96).double(), show=False)
    half, two, _ = mt.grow(small, optimizer, to=make(width=32).double(), show=False)
    twice, two, _ = mt.grow(half, two, to=make(width=96).double(), show=False)
    assert {h.module: h.factor for h in hooks.attached(once)} == {"head": pytest.approx(1 / 6)}
    assert {h.module: h.factor for h in hooks.attached(twice)} == {"head": pytest.approx(1 / 6)}
    for (name, a), b in zip(once.named_parameters(), twice.parameters(), strict=True):
        assert_same(b.detach(), a.detach(), 1e-14)
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.allclose(two.state[b][key], one.state[a][key], rtol=1e-12, atol=0), (name, key)
    assert_same(train(twice, two, batches()), train(once, one, batches()))


def test_muon_and_adamw_behind_one_interface_go_on() -> None:
    make = gpt_factory(**SIZES)
    small_plan = mt.plan(make, base=dict(width=16), target=dict(width=16), optimizer="muon-kimi")
    small = drawn(make, width=16)
    optimizer = small_plan.optimizer(small, lr=1e-2, eps=1e-3, engine="own")
    train(small, optimizer, batches(4))
    plan = mt.plan(make, base=dict(width=16), target=dict(width=32), optimizer="muon-kimi")
    big, big_optimizer, record = mt.grow(small, optimizer, to=make(width=32).double(), plan=plan, show=False)
    assert type(big_optimizer) is type(optimizer) and record.plan.exact
    assert plan.verify(big_optimizer, big)["lr"] == pytest.approx(1e-2)
    assert_same(big(batches()[0][0]).detach(), small(batches()[0][0]).detach())
    # Newton–Schulz leaves bfloat16's rounding in every step
    assert_same(train(big, big_optimizer, batches(4)), train(small, optimizer, batches(4)), 0.05)


def test_several_optimizers_a_schedule_and_an_average_go_on() -> None:
    make = mlp_factory(inputs=6, outputs=4, depth=2)
    small = drawn(make, width=8)
    matrices = [p for p in small.parameters() if p.ndim == 2]
    rest = [p for p in small.parameters() if p.ndim != 2]
    pair = [torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(rest, lr=1e-2, eps=1e-3)] if rest else []
    pair = pair or [torch.optim.SGD(matrices, lr=0.1, momentum=0.9)]
    scheduler = torch.optim.lr_scheduler.LambdaLR(pair[0], lambda t: 1 / (1 + t))
    mean = torch.optim.swa_utils.AveragedModel(small, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,))

    def step(model: nn.Module, optimizers: list[Any], schedule: Any, average: Any) -> None:
        for _ in range(4):
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
            schedule.step()
            average.update_parameters(model)

    step(small, pair, scheduler, mean)
    one = len(pair) == 1
    big, grown, record = mt.grow(
        small, pair[0] if one else pair, to=make(width=24).double(), scheduler=scheduler, average=mean,
        batches=[(x, y)] * 3, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), show=False,
    )  # fmt: skip
    grown = [grown] if one else grown
    step(small, pair, scheduler, mean)
    step(big, grown, record.scheduler, record.average)
    assert record.scheduler.last_epoch == scheduler.last_epoch == 8
    assert_same(big(x).detach(), small(x).detach())
    assert_same(record.average(x).detach(), mean(x).detach())


def test_a_big_model_on_the_meta_device_gets_storage_and_its_ties() -> None:
    make = gpt_factory(**SIZES, tied=True)
    small = drawn(make, width=16)
    with torch.device("meta"):
        big = make(width=32).double()
    big, _, _ = mt.grow(small, to=big, show=False)
    assert not any(p.is_meta for p in big.parameters()) and big.head.weight is big.wte.weight
    assert_same(big(batches()[0][0]).detach(), small(batches()[0][0]).detach())


def test_noise_breaks_the_tie_and_its_absence_is_said() -> None:
    make = gpt_factory(**SIZES)
    small = drawn(make, width=16)
    _, _, silent = mt.grow(small, to=make(width=32).double(), show=False)
    assert any("stay equal for ever" in note for note in silent.notes)
    big, _, record = mt.grow(small, to=make(width=32).double(), noise="0.05:preserving", seed=3, show=False)
    again, _, _ = mt.grow(small, to=make(width=32).double(), noise=mt.Noise(0.05, preserving=True), seed=3, show=False)
    assert all(torch.equal(a, b) for a, b in zip(big.parameters(), again.parameters(), strict=True))
    assert not any("stay equal" in note for note in record.notes)
    assert_same(big(batches()[0][0]).detach(), small(batches()[0][0]).detach(), 1e-12)


def test_the_grow_plan_is_printed_and_saved_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make = gpt_factory(**SIZES)
    small, big = drawn(make, width=16), make(width=32).double()
    before = copy.deepcopy(big.state_dict())
    wrong = torch.optim.LBFGS(small.parameters())
    with pytest.raises(mt.InputError):
        mt.grow(small, wrong, to=big, save=tmp_path / "grow.json")
    assert all(torch.equal(v, before[k]) for k, v in big.state_dict().items())
    mt.grow(small, to=big, save=tmp_path / "grow.json")
    assert "Grow plan" in capsys.readouterr().out and mt.GrowPlan.load(tmp_path / "grow.json").exact


def test_a_model_that_departs_raises_or_reports() -> None:
    """A factor of the model's own code that depends on the size is named, with its number; a multiplier undoes it."""

    class Scaled(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(7, width), nn.Linear(width, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            return self.head(h * h.shape[-1] ** -0.5)

    torch.manual_seed(0)
    small = Scaled(8)
    with pytest.raises(mt.GrowthError, match=r"first to depart .*0\.7071"):
        mt.grow(small, to=Scaled(16), show=False)
    _, _, record = mt.grow(small, to=Scaled(16), show=False, verify="report")
    assert not record.verification.ok and not record.exact and record.plan.exact
    assert "the verification failed: the big model is not the small one" in record.notes
    assert not any("equal for ever" in note for note in record.notes)
    assert mt.grow(small, to=Scaled(16), show=False, verify=False).record.verification is None
    big, _, record = mt.grow(small, to=Scaled(16), show=False, multipliers={"head": 2**0.5})
    x = torch.randn(4, 7)
    assert record.verification.ok and torch.allclose(big(x), small(x), atol=1e-6)


def test_the_user_s_own_loss_tells_how_a_model_is_run() -> None:
    """A forward that takes a dict, batches from a generator that is not read ahead."""

    class Asked(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(7, 2 * width), nn.Linear(width, 5)

        def forward(self, question: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"answer": self.head(F.glu(self.first(question["features"])))}

    def answer(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(model(batch["question"])["answer"], batch["label"])

    def stream() -> Any:
        g = torch.Generator().manual_seed(0)
        while True:
            taken.append(1)
            yield {
                "question": {"features": torch.randn(4, 7, generator=g)},
                "label": torch.randint(5, (4,), generator=g),
            }

    taken: list[int] = []
    torch.manual_seed(0)
    small = Asked(8)
    optimizer = torch.optim.Adam(small.parameters())
    _, _, record = mt.grow(small, optimizer, to=Asked(16), batches=stream(), loss=answer, steps=2, show=False)
    assert record.verification.ok and record.verification.steps == 2 and len(taken) == 2
    assert str(record.plan.by_name["first.weight"].maps[0]) == "2×[8→16]"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shared": ({"to": "small"}, "shares tensors with the small model"),
    "no module": ({"to": None}, "both models are nn.Module"),
    "smaller": ({"to": dict(width=8)}, "shrinks; growing copies units and drops none"),
    "noise": ({"noise": -1.0}, "noise size=-1.0: write a finite number"),
    "noise word": ({"noise": "loud:0.1"}, "loud"),
    "seed": ({"seed": 0.5}, "seed=0.5: write a whole number"),
    "depth": ({"depth": "deeper"}, "depth='deeper'"),
    "state": ({"optimizer_state": "none"}, "optimizer_state='none'"),
    "multiplier": ({"multipliers": {"head": "two"}}, "multipliers={'head': 'two'}: write a number"),
    "module": ({"multipliers": {"absent": 2.0}}, "module 'absent', which this model does not have"),
    "maps": ({"maps": {"head.weight": {1: "16→31"}}}, "goes from 16 to 32"),
    "plan": ({"plan": "mup"}, "plan='mup': give a plan that mt.plan made"),
    "save": ({"save": 3}, "save=3: write the path of a file"),
    "steps": ({"steps": 1.5}, "steps=1.5"),
    "rules": ({"state_rules": 3}, "state_rules=3: write a mapping"),
    "maps type": ({"maps": 3}, "maps=3: write a mapping"),
    "multipliers type": ({"multipliers": 3}, "multipliers=3: write a mapping"),
    "scheduler": ({"scheduler": object()}, "scheduler"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case: str) -> None:
    make = gpt_factory(**SIZES)
    small = make(width=16)
    options, said = dict(WRONG[case][0]), WRONG[case][1]
    optimizer = torch.optim.Adam(small.parameters()) if case == "state" else None
    to = options.pop("to", dict(width=32))
    options["to"] = small if to == "small" else make(**to) if isinstance(to, dict) else to
    with pytest.raises(mt.InputError) as raised:
        mt.grow(small, optimizer, show=False, **options)
    assert said in str(raised.value) and "\n" not in str(raised.value)


class Wrapper(nn.Module):
    """Somebody's own wrapper, under whose names all tensors begin with `module.`"""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns of itself when it is imported
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, Wrapper])
def test_wrapped_models_are_grown_as_what_they_wrap(wrap: Any) -> None:
    make = gpt_factory(**SIZES)
    inner, big = drawn(make, width=16), make(width=32).double()
    optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2, eps=1e-3)
    train(inner, optimizer, batches(2))
    wrapped = wrap(big)
    found, big_optimizer, record = mt.grow(
        wrap(inner), optimizer, to=wrapped, batches=batches(2), loss=loss, show=False
    )
    assert found is wrapped and record.verification.ok
    assert_same(train(big, big_optimizer, batches(2)), train(inner, optimizer, batches(2)))


def test_scripted_models_are_refused() -> None:
    model = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    with pytest.raises(mt.InputError, match="scripted model cannot be traced"):
        mt.grow(scripted, to=nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 5)), show=False)


def test_hooks_that_growing_did_not_expect_are_refused() -> None:
    make = gpt_factory(**SIZES)
    small, big = make(width=16), make(width=32)
    mt.plan(make, base=dict(width=8), target=dict(width=32), placement="multiplier").attach(big)
    with pytest.raises(mt.InputError, match=r"'head' of the big model carries ×0.25, which the small model does not"):
        mt.grow(small, to=big, show=False)


def _sharded(rank: int, folder: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    make = gpt_factory(**SIZES)
    small = drawn(make, width=16)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2, eps=1e-3)
    train(small, optimizer, batches(3))
    big = make(width=32).double()
    for block in big.blocks:
        fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(big, mesh=init_device_mesh("cpu", (2,)))
    _, big_optimizer, _ = mt.grow(small, optimizer, to=big, verify=False, show=False)
    out = train(big, big_optimizer, batches(3))
    if rank == 0:
        torch.save((out, train(small, optimizer, batches(3))), Path(folder) / "found.pt")
    leave(0)


def test_a_sharded_big_model_gets_its_shards(tmp_path: Path) -> None:
    """FSDP2 on two real processes: each takes its part of the copies and of the optimizer's state."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_sharded, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    found, expected = torch.load(tmp_path / "found.pt")
    assert_same(found, expected)


def test_multipliers_are_attached_again_after_loading() -> None:
    """Those that the big model needs, the small one's own among them, from the saved grow plan alone."""
    make = gpt_factory(**SIZES, tied=True, norm="rmsnorm", norm_gain=False)
    plan = mt.plan(make, base=dict(width=8), target=dict(width=16))
    small = plan.attach(drawn(make, width=16))
    big, _, record = mt.grow(small, to=make(width=32).double(), show=False)
    saved = mt.GrowPlan.from_dict(record.plan.to_dict())
    loaded = make(width=32).double()
    loaded.load_state_dict(big.state_dict())
    x = batches()[0][0]
    assert_same(saved.attach(loaded)(x).detach(), small(x).detach())


def test_plans_that_do_not_compose_are_refused() -> None:
    """An axis that stays from base to small and grows from small to big; weights that hooks keep at size one."""

    class Narrow(nn.Module):
        def __init__(self, width: int, inner: int) -> None:
            super().__init__()
            self.first, self.inner, self.head = nn.Linear(7, width), nn.Linear(width, inner), nn.Linear(inner, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.inner(torch.tanh(self.first(x)))))

    base, middle, target = dict(width=4, inner=4), dict(width=8, inner=4), dict(width=16, inner=8)
    plans = [mt.plan(Narrow, base=base, target=sizes, placement="multiplier") for sizes in (middle, target)]
    small = plans[0].attach(Narrow(**middle))
    optimizer = plans[0].optimizer(small, lr=1e-2)
    with pytest.raises(mt.InputError, match=r"plan: it multiplies module 'inner' by 1, and the grown model needs ×0.5"):
        mt.grow(small, optimizer, to=Narrow(**target), plan=plans[1], show=False)
    unit = mt.plan(Narrow, base=base, target=target, placement="unit")
    with pytest.raises(mt.InputError, match="placement 'unit'"):
        mt.grow(small, optimizer, to=Narrow(**target), plan=unit, show=False)
    with pytest.raises(mt.InputError, match="recipe 'sp' scales nothing"):
        mt.grow(
            small,
            optimizer,
            to=Narrow(**target),
            plan=mt.plan(Narrow, base=base, target=target, recipe="sp"),
            show=False,
        )
