"""Along the depth axis: blocks add like L^-1 or L^-½, and all of them together change the loss by the same amount."""

import re

import pytest
import torch

from mutransfer.check import coord_check
from mutransfer.errors import InputError
from tests.check import zoo

DEPTHS = [dict(width=32, depth=d) for d in (2, 4, 8)]


def build_with(alpha, lr_power, optimizer="adamw", norm=True, scaled_init=False, absorbed=False, zero=False):
    def build(size):
        ratio, n = size["depth"] / 2, size["width"]
        model = zoo.GPT(n, depth=size["depth"], norm=norm, branch=1.0 if absorbed else ratio**-alpha)
        groups = []
        for name, p in model.named_parameters():
            kind, ends = zoo.role(name), re.search(r"attn\.out|down", name) is not None
            with torch.no_grad():
                if kind == "vector":
                    p.fill_(1.0)
                else:
                    gain = 0.5 if "blocks" in name else 1.0
                    p.normal_(0, 1.0 if kind == "input" else gain / zoo.fan_in(name, p, n) ** 0.5)
                if ends and scaled_init:
                    p.mul_(ratio**-0.5)
                if ends and absorbed:
                    p.mul_(ratio**-alpha)
                if ends and zero:
                    p.zero_()
            rate = ratio**lr_power if "blocks" in name else 1.0
            if ends and absorbed:
                rate *= ratio ** (-alpha if optimizer == "adamw" else -2 * alpha)
            groups.append(dict(params=[p], lr=rate * (3e-3 if optimizer == "adamw" else 0.1)))
        if optimizer == "sgd":
            return model, torch.optim.SGD(groups, momentum=0.9)
        return model, torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-12)

    return build


def check(build):
    return coord_check(
        build, DEPTHS, zoo.gpt_batches(4), lambda m, b: zoo.cross_entropy(m(b[0]), b[1]), steps=2, seeds=2
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(alpha=1.0, lr_power=0.0),
        dict(alpha=0.5, lr_power=-0.5),
        dict(alpha=1.0, lr_power=1.0, optimizer="sgd"),
        dict(alpha=0.5, lr_power=0.0, optimizer="sgd"),
        dict(alpha=1.0, lr_power=0.0, norm=False),
        dict(alpha=1.0, lr_power=0.0, absorbed=True),
        dict(alpha=1.0, lr_power=1.0, optimizer="sgd", absorbed=True),
        dict(alpha=1.0, lr_power=0.0, zero=True),
    ],
    ids=str,
)
def test_depth_parametrizations_pass(options):
    report = check(build_with(**options))
    assert report.axis == "depth"
    assert report.ok, report.words()


@pytest.mark.parametrize(
    ("options", "culprit", "rule"),
    [
        (dict(alpha=0.0, lr_power=0.0), r"blocks\.0\.attn\.out\.weight", "branch multiplier"),
        (dict(alpha=0.0, lr_power=0.0, norm=False), r"blocks\.0\.attn\.out\.weight", "branch multiplier"),
        (dict(alpha=0.0, lr_power=0.0, optimizer="sgd"), r"blocks\.0\.attn\.out\.weight", "branch multiplier"),
        (dict(alpha=0.5, lr_power=0.0), r"blocks\.0\.", "learning rate over depth"),
        (dict(alpha=1.0, lr_power=-1.0), r"blocks\.0\.", "learning rate over depth"),
        (dict(alpha=1.0, lr_power=0.0, optimizer="sgd"), r"blocks\.0\.", "learning rate over depth"),
        (dict(alpha=0.0, lr_power=0.0, scaled_init=True), r"blocks\.0\.", "learning rate over depth"),
    ],
    ids=str,
)
def test_broken_depth_rules_fail(options, culprit, rule):
    report = check(build_with(**options))
    assert report.verdict == "FAIL", report.words()
    assert re.match(culprit, report.culprits[0]), report.words()
    assert report.findings[0].rule == rule


def test_width_and_depth_together_are_refused():
    sizes = [dict(width=32, depth=2), dict(width=64, depth=4), dict(width=128, depth=8)]
    with pytest.raises(InputError, match="check both on their grid"):
        coord_check(build_with(1.0, 0.0), sizes, zoo.gpt_batches(2), lambda m, b: zoo.cross_entropy(m(b[0]), b[1]))
