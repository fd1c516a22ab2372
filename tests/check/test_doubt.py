"""What proves nothing is a note: gradients of rounding, a draw of a few numbers, a small effect on a vector of small models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mutransfer.check import coord_check
from mutransfer.check.slopes import drawn
from tests.check import zoo

WIDTHS = [32, 64, 128]


def check(variant, widths=WIDTHS):
    return coord_check(zoo.resolved(variant), widths, *zoo.task(variant), steps=2, seeds=2)


@pytest.mark.parametrize("eps", [1e-12, 1e-8])
def test_a_bias_in_front_of_a_norm_is_not_judged(eps):
    def build(n):
        body = nn.Sequential(nn.Conv2d(1, n, 3), nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, n, 3), nn.BatchNorm2d(n), nn.ReLU(),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 10))  # fmt: skip
        nn.init.normal_(body.get_parameter("8.weight"), std=1 / n)
        matrices = {"3.weight", "8.weight"}
        groups = [
            dict(params=[p], lr=3e-3 * (WIDTHS[0] / n if name in matrices else 1.0))
            for name, p in body.named_parameters()
        ]
        return body, torch.optim.AdamW(groups, weight_decay=0.0, eps=eps)

    g = torch.Generator().manual_seed(0)
    batch = torch.randn(16, 1, 8, 8, generator=g), torch.randint(10, (16,), generator=g)
    report = coord_check(build, WIDTHS, batch, lambda m, b: F.cross_entropy(m(b[0]), b[1]), steps=2, seeds=2)
    assert report.verdict == "PASS", report.words()
    assert {f.name for f in report.findings if f.rule == "no effect"} == {"0.bias", "3.bias"}
    assert not [f for f in report.findings if f.rule == "eps" and f.name in ("0.bias", "3.bias")]


@pytest.mark.parametrize("numel", [1, 2, 4, 8, 64])
def test_the_interval_of_a_random_size_covers_its_exponent(numel):
    rng = np.random.default_rng(0)
    covered, sizes = 0, [16.0, 32.0, 64.0, 128.0]
    for _ in range(400):
        rms = np.sqrt(np.mean(rng.standard_normal((4, 2, numel)) ** 2, axis=-1))
        slope = drawn(sizes, rms, np.full(4, numel))
        assert slope is not None
        low, high = slope.interval(0.9)
        covered += low <= 0 <= high
    assert covered / 400 > 0.87


def test_equal_numbers_of_all_seeds_have_no_scatter():
    slope = drawn([1.0, 2.0, 4.0], np.ones((3, 2)), np.full(3, 4))
    assert slope is not None and slope.interval(0.9) == (0.0, 0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("power", [-1.0, -0.5, 0.5, 1.0])
def test_a_bias_whose_rate_is_wrong_by_a_root_of_the_width_fails(optimizer, power):
    report = check(zoo.Variant("bias", "mlp", optimizer, defects={r"(first|middle).*bias": (0, power)}))
    assert report.verdict == "FAIL", report.words()
    assert report.culprits[0] == "first.bias"


def test_a_small_exponent_of_a_bias_is_a_note_over_a_short_span_and_fails_over_a_wide_one():
    variant = zoo.Variant("bias", "mlp", defects={"first.bias": (0, -0.33)})
    short, wide = check(variant), check(variant, [32, 64, 128, 256])
    assert short.verdict == "PASS" and ("first.bias", "note") in {(f.name, f.severity) for f in short.findings}
    assert wide.verdict == "FAIL" and wide.culprits == ["first.bias"]


def test_a_matrix_is_never_spared():
    report = check(zoo.Variant("matrix", "mlp", defects={"middle.1.weight": (0, -0.33)}))
    assert report.verdict == "FAIL" and report.culprits == ["middle.1.weight"], report.words()
