"""Schedules multiply: known values at known updates, and ratios between groups that no update changes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutransfer.train import SCHEDULES, make_scheduler, multiplier


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_reaches_one_exactly(schedule: str) -> None:
    values = [multiplier(t, steps=100, warmup=4, schedule=schedule) for t in range(5)]
    assert values == [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_the_last_update_has_exactly_the_final_ratio(schedule: str, ratio: float) -> None:
    assert multiplier(99, steps=100, warmup=10, schedule=schedule, final_lr_ratio=ratio) == pytest.approx(
        ratio, abs=1e-15
    )


def test_the_middle_of_a_decay_is_the_mean_of_its_ends() -> None:
    for schedule in ("cosine", "linear"):
        assert multiplier(60, steps=101, warmup=20, schedule=schedule, final_lr_ratio=0.1) == pytest.approx(0.55)
    assert multiplier(90, steps=101, warmup=20, schedule="wsd", final_lr_ratio=0.1, wsd_decay_fraction=0.2) == (
        pytest.approx(0.55)
    )


def test_cosine_follows_its_formula() -> None:
    for step in range(100):
        expected = 0.5 * (1 + math.cos(math.pi * step / 99))
        assert multiplier(step, steps=100, schedule="cosine", final_lr_ratio=0.0) == pytest.approx(expected, abs=1e-15)


def test_wsd_is_flat_until_its_last_fifth() -> None:
    values = [multiplier(t, steps=100, warmup=10, schedule="wsd", final_lr_ratio=0.0) for t in range(100)]
    assert values[10:80] == [1.0] * 70
    assert values[80] < 1.0


@given(
    steps=st.integers(1, 300),
    share=st.floats(0, 1),
    schedule=st.sampled_from(SCHEDULES),
    ratio=st.floats(0, 1),
    fraction=st.floats(0, 1),
)
def test_every_multiplier_lies_in_the_unit_interval(
    steps: int, share: float, schedule: str, ratio: float, fraction: float
) -> None:
    for step in range(steps + 2):  # a scheduler looks one update past the end
        value = multiplier(
            step,
            steps=steps,
            warmup=int(share * steps),
            schedule=schedule,
            final_lr_ratio=ratio,
            wsd_decay_fraction=fraction,
        )
        assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ratios_between_groups_survive_every_update(schedule: str) -> None:
    tensors = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    rates = [1.0, 0.25, 1 / 64]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(tensors, rates, strict=True)], lr=1.0)
    scheduler = make_scheduler(optimizer, steps=30, warmup=7, schedule=schedule, final_lr_ratio=0.1)
    for step in range(30):
        factor = multiplier(step, steps=30, warmup=7, schedule=schedule, final_lr_ratio=0.1)
        assert [group["lr"] for group in optimizer.param_groups] == [lr * factor for lr in rates]
        optimizer.step()
        scheduler.step()
