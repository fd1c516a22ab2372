"""With its plan every certain optimizer PASSes the coordinate check over width and over depth; with another's facts it FAILs.

Short runs of a residual MLP; benchmarks/optimizer_checks.py has the GPT too, and more sizes, steps and seeds.
"""

import pytest

from benchmarks.optimizer_checks import REGISTRY, check, runnable

SIZES = {"width": (16, 32, 64), "depth": (2, 4, 8)}
ALIKE = {"adam", "nadam", "adamax", "rmsprop", "adagrad", "sign", "muon-uvt", "muon", "muon-spectral"}
"""Facts that another optimizer of the list shares, or scalings that tests/test_optimizers.py and the benchmark check."""

CERTAIN = [name for name in runnable() if REGISTRY[name].certain and name not in ALIKE]


@pytest.mark.parametrize("axis", SIZES)
@pytest.mark.parametrize("name", CERTAIN)
def test_the_plan_passes_and_the_facts_of_another_optimizer_fail(name: str, axis: str) -> None:
    options = dict(sizes=SIZES[axis], steps=3, seeds=1)
    right, wrong = (check(name, "mlp", axis, rule, **options) for rule in ("plan", "wrong facts"))
    assert right.verdict == "PASS", right
    assert wrong.verdict == "FAIL", wrong


@pytest.mark.parametrize("axis", SIZES)
def test_standard_parametrization_fails(axis: str) -> None:
    assert check("lamb", "mlp", axis, "sp", sizes=SIZES[axis], steps=3, seeds=1).verdict == "FAIL"
