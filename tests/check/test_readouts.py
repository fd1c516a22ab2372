"""Where the read-out's multiplier is written changes nothing; what was not seen, or cannot be judged, is said and not accused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mutransfer.check import coord_check

WIDTHS = [32, 64, 128]


class Net(nn.Module):
    def __init__(self, n, readout, kind=""):
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(20, n), nn.Linear(n, n), nn.Linear(n, 10, bias=False)
        self.readout, self.ratio, self.kind = readout, n / 32, kind
        for layer in (self.first, self.middle):
            nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.head.weight, 0, 0.2)
        if kind == "zero head":
            nn.init.zeros_(self.head.weight)
        if kind == "unused":
            self.spare = nn.Linear(n, n)
        if kind == "weight norm":
            nn.utils.parametrizations.weight_norm(self.middle)

    def forward(self, x):
        x = F.relu(self.middle(F.relu(self.first(x))))
        if self.kind == "times":
            x = x * self.ratio**0.5
        x = x / self.ratio if self.readout in ("input", "twice") else x
        y = self.head(x)
        return y / self.ratio if self.readout in ("output", "twice") else y


def check(readout="output", kind="", power=None, optimizer="adamw", eps=1e-12, **options):
    power = {"middle.weight": -1, "middle.parametrizations.weight.original1": -1} | (power or {})

    def build(n):
        model, ratio = Net(n, readout, kind), n / 32
        sgd = optimizer is torch.optim.SGD
        groups = []
        for name, p in model.named_parameters():
            rate = power.get(name, 0) + (1 if sgd else 0)
            groups.append(dict(params=[p], lr=(0.1 if sgd else 1e-3) * ratio**rate, weight_decay=0.0))
        cls = torch.optim.AdamW if optimizer == "adamw" else optimizer
        return model, cls(groups, **({} if sgd else {"eps": eps}))

    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(32, 20, generator=g), torch.randint(10, (32,), generator=g)) for _ in range(3)]
    options = {"steps": 2, "seeds": 2} | options
    return coord_check(build, WIDTHS, batches, lambda m, b: F.cross_entropy(m(b[0]), b[1]), **options)


@pytest.mark.parametrize("readout", ["input", "output"])
@pytest.mark.parametrize("optimizer", ["adamw", torch.optim.SGD])
def test_the_multiplier_may_be_before_or_after_the_product(readout, optimizer):
    report = check(readout, optimizer=optimizer)
    assert report.ok, report.words()


@pytest.mark.parametrize("optimizer", ["adamw", torch.optim.SGD])
@pytest.mark.parametrize("readout", ["input", "output"])
def test_a_wrong_head_rate_shows_wherever_the_multiplier_is(readout, optimizer):
    report = check(readout, power={"head.weight": -1}, optimizer=optimizer)
    assert report.culprits == ["head.weight"], report.words()
    assert report.findings[0].rule == "learning rate"
    assert report.findings[0].slope == pytest.approx(-1, abs=0.15)


def test_a_multiplier_applied_twice_is_the_heads():
    report = check("twice")
    assert report.culprits == ["head.weight"], report.words()
    assert {f.rule for f in report.findings} == {"readout multiplier"}


def test_an_eps_that_takes_over_at_larger_sizes_is_named():
    assert check(eps=1e-3).findings[0].rule == "eps"


def test_what_nobody_uses_is_a_note():
    report = check(kind="unused")
    assert report.ok, report.words()
    assert {f.name for f in report.findings if f.severity == "note"} == {"spare.weight", "spare.bias"}


def test_weights_made_by_a_parametrization_are_not_activations():
    assert check(kind="weight norm").ok


def test_what_a_zero_head_hides_is_inconclusive_until_it_moved():
    short = check(kind="zero head", steps=1, power={"middle.weight": 1})
    assert short.verdict == "INCONCLUSIVE" and "not seen" in {f.rule for f in short.findings}, short.words()
    assert check(kind="zero head").ok


def test_an_optimizer_that_warms_up_into_another_rule_is_inconclusive():
    report = check(optimizer=torch.optim.RAdam)
    assert report.verdict == "INCONCLUSIVE" and "optimizer's character" in {f.rule for f in report.findings}


def test_words_fold_blocks_and_rules():
    report = check(power={"middle.weight": 0, "middle.bias": 0})
    lines = report.words().splitlines()
    assert lines[1].startswith("  ✗ middle.weight: ") and len(lines) == 2
