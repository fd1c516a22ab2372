"""Anything a user may hand over: batches and outputs of every shape; wrong input is one clear line; nothing is left behind."""

import dataclasses
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mutransfer.check import Finding, coord_check
from mutransfer.check.findings import folded
from mutransfer.errors import InputError
from tests.check import zoo

WIDTHS = [32, 64, 128]
X, Y = torch.randn(8, 20, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 5)


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def good(n):
    return zoo.resolved(zoo.Variant("ok", "mlp"))(n)


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor
    note: str = "kept"


@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor
    cache: object = None


class WithLoss(nn.Module):
    def __init__(self, n, how):
        super().__init__()
        self.net, self.how, self.cache = good(n)[0], how, []

    def forward(self, x, y, **kwargs):
        logits = self.net(x)
        self.cache.append(logits.shape)
        loss = F.mse_loss(logits, y)
        return {"loss": loss, "parts": (logits, None)} if self.how == "dict" else Output(loss, logits, self.cache)


BATCHES = {
    "tuple": ((X, Y), mse),
    "list of tuples": ([(X, Y), (X + 1, Y)], mse),
    "dict": (dict(x=X, y=Y, flag=3), lambda m, b: F.mse_loss(m(b["x"]), b["y"])),
    "dataclass": (Batch(X, Y), lambda m, b: F.mse_loss(m(b.x), b.y)),
    "generator": (((X, Y) for _ in range(5)), mse),
    "loader": (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4, drop_last=True), mse),
    "tensor": (X, lambda m, b: m(b).square().mean()),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_every_shape(name):
    batches, loss = BATCHES[name]
    assert coord_check(good, WIDTHS, batches, loss, steps=2, seeds=2).verdict == "PASS"


@pytest.mark.parametrize("how", ["dict", "dataclass"])
def test_the_models_own_loss_is_the_default(how):
    def build(n):
        model = WithLoss(n, how)
        names = dict(model.named_parameters())
        _, optimizer = good(n)
        groups = [
            dict(params=[p], lr=group["lr"]) for p, group in zip(names.values(), optimizer.param_groups, strict=True)
        ]
        torch.nn.init.normal_(model.net.head.weight, std=1 / n)
        return model, torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-12)

    assert coord_check(build, WIDTHS, dict(x=X, y=Y), steps=2, seeds=2).ok


def test_several_optimizers_and_a_scheduler_from_build():
    def build(n):
        model, optimizer = good(n)
        groups = [
            {k: v for k, v in g.items() if k in ("params", "lr", "eps", "weight_decay")} for g in optimizer.param_groups
        ]
        pair = [torch.optim.AdamW(groups[:4]), torch.optim.AdamW(groups[4:])]
        schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.9**t) for o in pair]
        return model, pair, schedulers

    assert coord_check(build, WIDTHS, (X, Y), mse, steps=2, seeds=2).ok


def test_recording_changes_neither_buffers_nor_random_states_nor_the_training_path():
    def final_state(build, n, steps):
        torch.manual_seed(0)
        model, optimizer = build(n)
        for step in range(steps):
            torch.manual_seed(0 + 7919 * (step + 1))
            optimizer.zero_grad()
            loss(model, batches[step]).backward()
            optimizer.step()
        return model.state_dict()

    variant = zoo.Variant("cnn", "cnn", options={"norm": True})
    batches, loss = zoo.task(variant)
    seen = {}

    def keep(model, optimizer, step):
        seen[model.conv1.weight.shape[0]] = {k: v.clone() for k, v in model.state_dict().items()}

    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    coord_check(zoo.resolved(variant), [32, 64], batches, loss, steps=2, seeds=1, after_step=keep)
    assert torch.equal(torch.random.get_rng_state(), before)
    for key, value in final_state(zoo.resolved(variant), 32, 2).items():
        assert torch.equal(seen[32][key], value), key


def test_zero_is_recorded_as_zero_and_has_no_slope():
    variant = zoo.Variant("zero", "mlp", zero="^head", absorbed=False)
    report = coord_check(zoo.resolved(variant), WIDTHS, *zoo.task(variant), steps=2, seeds=2)
    row = next(r for r in report.table if (r["kind"], r["name"], r["step"]) == ("size", "head", 0))
    assert row["values"] == [0.0, 0.0, 0.0]
    assert row["slope"] is None


def test_report_is_plain_data_words_and_pictures(tmp_path):
    report = coord_check(good, WIDTHS, (X, Y), mse, steps=2, seeds=2, operator_norms=True)
    saved = json.loads(report.save(tmp_path / "deep" / "check.json").read_text())
    assert saved["verdict"] == "PASS" and saved["sizes"] == WIDTHS and saved["axis"] == "width"
    assert "PASS" in str(report)
    assert {r["kind"] for r in report.records} >= {
        "size",
        "change",
        "own",
        "gradient",
        "update",
        "gradient operator norm",
    }
    for ending in ("png", "svg", "pdf"):
        assert report.figure(tmp_path / f"a.{ending}").stat().st_size > 1000
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf"):
        report.figure(tmp_path / "a.bmp")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        report.save(tmp_path / "file" / "check.json")
    for bad in (None, 3, tmp_path, "."):
        for write in (report.save, report.figure):
            with pytest.raises(InputError, match="file"):
                write(bad)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o644, "others may read it"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg", "deep", "file"]


def nan_model(n):
    model, optimizer = good(n)
    with torch.no_grad():
        model.first.weight.fill_(torch.nan)
    return model, optimizer


def failing(n):
    raise RuntimeError("no such width")


def stale_state(n):
    model, optimizer = good(n)
    optimizer.state[model.first.weight]["exp_avg"] = torch.zeros(7, 20)
    return model, optimizer


def deep(depth):
    model = nn.Sequential(nn.Sequential(*[nn.Linear(20, 20) for _ in range(depth)]), nn.Linear(20, 5))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


WRONG = {
    "one size": (dict(sizes=[64]), "at least two sizes"),
    "no list": (dict(sizes=64), "list of at least two sizes"),
    "mixed": (dict(sizes=[64, dict(width=128)]), "all integers, or all dicts"),
    "negative": (dict(sizes=[-64, 128]), "must be positive"),
    "twice": (dict(sizes=[64, 64, 128]), "listed twice"),
    "keys": (dict(sizes=[dict(width=1), dict(depth=2)]), "same keys"),
    "which axis": (dict(sizes=[dict(a=1, b=1), dict(a=2, b=2)]), "say which one is the axis"),
    "no such axis": (dict(sizes=[dict(a=1), dict(a=2)], axis="b"), "axis='b' does not vary"),
    "no batches": (dict(batches=[]), "batches is empty"),
    "string": (dict(batches="data.txt"), "batches='data.txt'"),
    "steps": (dict(steps=0), "steps=0"),
    "seeds": (dict(seeds=0), "seeds=0"),
    "seed list": (dict(seeds=[1, 1]), "different non-negative"),
    "clip": (dict(clip=-1.0), "clip=-1.0"),
    "tolerance": (dict(tolerance=2.0), "tolerance=2.0"),
    "steps as a flag": (dict(steps=True), "steps=True"),
    "clip in words": (dict(clip="x"), "clip='x'"),
    "level in words": (dict(level="x"), "level='x'"),
    "schedule": (dict(schedule="x"), "schedule='x'"),
    "progress": (dict(progress=3), "progress=3"),
    "after_step": (dict(after_step=4), "after_step=4"),
    "build": (dict(build="model"), "build='model'"),
    "failing": (dict(build=failing), r"build\(32\) failed: RuntimeError: no such width"),
    "model alone": (dict(build=lambda n: good(n)[0]), "returned a model alone"),
    "nothing": (dict(build=lambda n: None), "must return \\(model, optimizer\\)"),
    "no optimizer": (dict(build=lambda n: (good(n)[0], 3)), "needs param_groups"),
    "other parameters": (dict(build=lambda n: (good(n)[0], good(n)[1])), "none of the model's parameters"),
    "no growth": (dict(build=lambda n: good(32)), "no tensor's shape depends on width"),
    "axis is no name": (dict(axis=3), "axis=3"),
    "axis says depth": (dict(axis="depth"), "axis='depth', but the number of layers stays and 'first.weight'"),
    "axis says width": (dict(axis="width", build=lambda n: deep(n // 32)), "the number of layers changes"),
    "shrinking": (dict(build=lambda n: good(4096 // n)), r"'first.weight' has shape \(64, 20\) at size 64"),
    "loss shape": (dict(loss=lambda m, b: m(b[0])), "one scalar tensor"),
    "loss type": (dict(loss=lambda m, b: 3), "one scalar tensor"),
    "no loss": (dict(loss=None, batches=X), "without a loss"),
    "nan": (dict(build=nan_model), "NaN or infinite at step 0"),
    "other width's state": (dict(build=stale_state), "exp_avg of 'first.weight' has shape \\(7, 20\\)"),
    "no gradient": (dict(loss=lambda m, b: m(b[0]).detach().mean()), "no gradient"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_clear_line(name):
    options, words = WRONG[name]
    arguments = dict(build=good, sizes=WIDTHS, batches=(X, Y), loss=mse, steps=1, seeds=1)
    with pytest.raises(InputError, match=words) as caught:
        coord_check(**{**arguments, **options})
    assert "\n" not in str(caught.value)


def test_no_warnings_from_scheduler_or_masks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coord_check(
            good, [32, 64], (X, Y), mse, steps=1, seeds=1, schedule=lambda o: torch.optim.lr_scheduler.ConstantLR(o)
        )


def test_a_pattern_stands_for_its_tensors_only_where_it_matches_no_other():
    def finding(name):
        return Finding(name, "learning rate", "its update", 1.0, 0.9, 1.1, 0.0, "lower it")

    found = [finding("3.weight"), finding("5.weight")]
    assert folded(found, "width", ["3.weight", "5.weight"])[0].startswith("*.weight ×2: ")
    assert folded(found, "width", ["1.weight", "3.weight", "5.weight"])[0].startswith("3.weight, 5.weight: ")
    many = [finding(f"{k}.weight") for k in range(1, 6)]
    line = folded(many, "width", [f"{k}.weight" for k in range(6)])[0]
    assert line.startswith("1.weight, 2.weight, 3.weight and 2 more: ")


def test_integer_sizes_of_more_layers_are_called_depth():
    assert coord_check(deep, [2, 4, 8], (X, Y), mse, steps=1, seeds=1).axis == "depth"
