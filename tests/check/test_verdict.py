"""Correct parametrizations pass; a broken one fails and its own tensor is named first. All of them are written by hand."""

import re

import pytest
import torch
from torch import nn

import mutransfer.testing
from mutransfer.check import coord_check
from tests.check import zoo

WIDTHS = [32, 64, 128]


def check(variant, **options):
    zoo.RATE[0] = 3e-3
    batches, loss = zoo.task(variant)
    setting = dict(steps=2, seeds=2, clip=variant.clip, schedule=variant.schedule)
    return coord_check(zoo.resolved(variant), WIDTHS, batches, loss, **{**setting, **options})


@pytest.mark.parametrize("variant", zoo.correct(), ids=lambda v: v.name)
def test_correct_models_pass(variant):
    report = check(variant)
    assert report.verdict == "PASS", report.words()
    assert report.culprits == []


@pytest.mark.parametrize("variant", zoo.broken(), ids=lambda v: v.name)
def test_broken_models_fail_naming_their_tensor_first(variant):
    report = check(variant)
    assert report.verdict == "FAIL", report.words()
    assert re.search(variant.culprits, report.culprits[0]), report.words()


@pytest.mark.parametrize(
    ("defect", "rule", "direction"),
    [((0, 1), "learning rate", "grows"), ((0, -1), "learning rate", "falls"), ((0.5, 0), "init", "grows")],
)
def test_the_rule_and_direction_are_named(defect, rule, direction):
    report = check(zoo.Variant("one", "mlp", defects={r"middle.1.weight": defect}))
    finding = report.findings[0]
    assert (finding.name, finding.rule, finding.direction) == ("middle.1.weight", rule, direction)
    assert finding.slope == pytest.approx(defect[0] + defect[1], abs=0.1)
    assert report.culprits == ["middle.1.weight"], "neighbours of a broken tensor are not accused"


def test_eps_is_told_from_a_wrong_learning_rate():
    report = check(zoo.Variant("eps", "mlp", eps=1e-1))
    assert report.findings[0].rule == "eps"


def test_default_decay_is_only_a_warning_but_a_chosen_one_fails():
    for decay, verdict in ((0.01, "PASS"), (0.02, "FAIL")):
        report = check(zoo.Variant("decay", "mlp", decay=decay))
        assert report.verdict == verdict, report.words()
        assert any(
            f.rule == "decay" and f.severity == ("warn" if verdict == "PASS" else "fail") for f in report.findings
        )


def test_l2_under_adam_must_follow_the_gradient():
    right = {"input": -1.0, "hidden": -0.5, "vector": -1.0, "output": 0.0, "scalar": 0.0}

    def l2(name, ratio):
        return 1e-3 * ratio ** right[zoo.role(name)] if name.endswith("weight") and name != "head.weight" else 0.0

    assert check(zoo.Variant("l2", "mlp", "adam", decay=l2)).ok
    assert "decay" in {f.rule for f in check(zoo.Variant("l2", "mlp", "adam", decay=lambda n, r: 1e-3)).findings}


def test_two_sizes_or_a_short_span_are_inconclusive_unless_something_fails():
    variant = zoo.Variant("ok", "mlp")
    batches, loss = zoo.task(variant)
    for widths in ([32, 128], [64, 96, 128]):
        report = coord_check(zoo.resolved(variant), widths, batches, loss, steps=2)
        assert report.verdict == "INCONCLUSIVE"
        assert report.why
    broken = zoo.Variant("bad", "mlp", defects={"middle.*weight": (0, 1)})
    assert coord_check(zoo.resolved(broken), [32, 128], batches, loss, steps=2).verdict == "FAIL"


def test_a_learning_rate_of_zero_is_inconclusive():
    def build(n):
        model, optimizer = zoo.resolved(zoo.Variant("ok", "mlp"))(n)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return model, optimizer

    assert coord_check(build, WIDTHS, *zoo.task(zoo.Variant("ok", "mlp")), steps=2, seeds=1).verdict == "INCONCLUSIVE"


def test_divergence_at_large_sizes_only_fails():
    class Exploding(zoo.MLP):
        def forward(self, x):
            y = super().forward(x)
            return y / 0.0 if self.head.in_features > 64 else y

    def build(n):
        model = Exploding(n)
        return model, torch.optim.SGD(model.parameters(), lr=1e-3)

    report = coord_check(build, WIDTHS, *zoo.task(zoo.Variant("ok", "mlp")), steps=1, seeds=1)
    assert report.verdict == "FAIL"
    assert "divergence" in {f.rule for f in report.findings}


def test_a_warm_up_from_zero_keeps_the_verdict():
    def warmup(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 2))

    assert check(zoo.Variant("ok", "mlp"), schedule=warmup, steps=3).ok
    assert not check(zoo.Variant("bad", "mlp", defects={"middle.*weight": (0, 1)}), schedule=warmup, steps=3).ok


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_recurrent_nets(kind):
    def build_with(power):
        def build(n):
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.embed = nn.Embedding(20, n)
                    self.rnn = getattr(nn, kind)(n, n, batch_first=True)
                    self.head = nn.Linear(n, 20, bias=False)

                def forward(self, idx):
                    return self.head(self.rnn(self.embed(idx))[0])

            model, ratio = Net(), n / 32
            torch.nn.init.normal_(model.head.weight, std=1 / n)
            matrices = [p for name, p in model.named_parameters() if "rnn.weight" in name or "head" in name]
            rest = [p for name, p in model.named_parameters() if not ("rnn.weight" in name or "head" in name)]
            groups = [dict(params=matrices, lr=1e-2 * ratio**power), dict(params=rest, lr=1e-2)]
            return model, torch.optim.AdamW(groups, eps=1e-12, weight_decay=0.0)

        return build

    idx = torch.randint(20, (8, 9), generator=torch.Generator().manual_seed(0))
    arguments = (WIDTHS, (idx[:, :-1], idx[:, 1:]), lambda m, b: zoo.cross_entropy(m(b[0]), b[1]))
    assert (good := coord_check(build_with(-1), *arguments, steps=2, seeds=2)).ok, good.words()
    bad = coord_check(build_with(0), *arguments, steps=2, seeds=2)
    assert bad.verdict == "FAIL" and bad.culprits[0].startswith("rnn.weight"), bad.words()


def test_torch_multihead_attention():
    def build_with(power, growing):
        def build(n):
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.embed = nn.Embedding(20, n)
                    self.attention = nn.MultiheadAttention(n, 2 if growing else n // 16, bias=False, batch_first=True)
                    self.head = nn.Linear(n, 20, bias=False)

                def forward(self, idx):
                    x = self.embed(idx)
                    return self.head(x + self.attention(x, x, x, need_weights=False)[0])

            model, ratio = Net(), n / 32
            torch.nn.init.normal_(model.head.weight, std=1 / n)
            matrices = [p for name, p in model.named_parameters() if "embed" not in name]
            groups = [dict(params=matrices, lr=1e-2 * ratio**power), dict(params=[model.embed.weight], lr=1e-2)]
            return model, torch.optim.AdamW(groups, eps=1e-12, weight_decay=0.0)

        return build

    idx = torch.randint(20, (8, 9), generator=torch.Generator().manual_seed(0))
    arguments = (WIDTHS, (idx[:, :-1], idx[:, 1:]), lambda m, b: zoo.cross_entropy(m(b[0]), b[1]))
    assert (good := coord_check(build_with(-1, False), *arguments, steps=2, seeds=2)).ok, good.words()
    bad = coord_check(build_with(0, False), *arguments, steps=2, seeds=2)
    assert bad.culprits[0] == "attention.in_proj_weight", bad.words()
    scale = coord_check(build_with(-1, True), *arguments, steps=2, seeds=2)
    assert scale.culprits == ["attention.in_proj_weight"]
    assert scale.findings[0].rule == "attention scale"


def test_assert_scale_invariant_raises_with_the_words():
    good, bad = zoo.Variant("ok", "mlp"), zoo.Variant("bad", "mlp", defects={"middle.*weight": (0, 1)})
    batches, loss = zoo.task(good)
    assert mutransfer.testing.assert_scale_invariant(zoo.resolved(good), WIDTHS, batches, loss, steps=2).ok
    with pytest.raises(AssertionError, match=r"middle\.\*\.weight.*learning rate"):
        mutransfer.testing.assert_scale_invariant(zoo.resolved(bad), WIDTHS, batches, loss, steps=2)
