"""Learning-curve laws: a run's later loss from its earlier steps, through the decay of its learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutransfer.cli import main
from mutransfer.predict.curve import fit_curve


def cosine(steps: int, end: float = 0.1) -> np.ndarray:
    """LR of updates 1 … steps, from 1e-3 down to `end` of it."""
    share = np.arange(1, steps + 1) / steps
    return 1e-3 * (end + (1 - end) * 0.5 * (1 + np.cos(np.pi * share)))


def annealed(lr: np.ndarray, forget: float = 0.002, gain: float = 0.25) -> np.ndarray:
    """Tissue, Wang & Wang's law with L0 2.5, A 0.6, α 0.45; S1 in thousands of steps at the peak."""
    area = np.cumsum(lr) / lr.max()
    drop, momentum = 0.0, np.zeros(len(lr))
    for i in range(1, len(lr)):
        drop = (1 - forget) * drop + (lr[i - 1] - lr[i]) / lr.max()
        momentum[i] = momentum[i - 1] + drop
    return 2.5 + 0.6 * (area / 1000) ** -0.45 - gain * forget * momentum


def table(
    lr: np.ndarray, noise: float = 3e-4, seed: int = 0, every: int = 20, carry: float = 0.5
) -> list[dict[str, Any]]:
    """Logged rows with noise whose neighbours are correlated."""
    rng = np.random.default_rng(seed)
    loss = annealed(lr)
    steps = np.arange(every, len(lr) + 1, every)
    error, last = [], 0.0
    for _ in steps:
        last = carry * last + np.sqrt(1 - carry**2) * noise * rng.standard_normal()
        error.append(last)
    return [
        {"step": int(s), "lr": float(lr[s - 1]), "loss": float(loss[s - 1] * np.exp(e))}
        for s, e in zip(steps, error, strict=True)
    ]


def test_the_loss_after_a_decay_is_predicted_from_before_its_end() -> None:
    lr = cosine(4000)
    law = fit_curve(table(lr), fit_until="70%")
    p = law.predict(step=4000)
    truth = float(annealed(lr)[-1])
    assert p.holds(truth)
    assert abs(p.loss / truth - 1) < 0.01


def test_a_law_of_one_schedule_predicts_another() -> None:
    law = fit_curve(table(cosine(4000)))
    decayed = np.concatenate([np.full(3000, 1e-3), np.linspace(1e-3, 1e-4, 1000)])
    p = law.predict(step=4000, schedule=list(decayed))
    assert p.holds(float(annealed(decayed)[-1]))
    constant = law.predict(step=4000, schedule=[1e-3] * 4000)
    assert constant.loss > p.loss, "the decay brings the loss down"


def test_intervals_hold_on_simulated_runs() -> None:
    """30 runs with correlated noise: nine of ten at least in four of five; binomial 0.1 % limit."""
    lr = cosine(2000)
    held = [
        fit_curve(table(lr, seed=s, carry=0.8), fit_until="70%").predict(step=2000).holds(float(annealed(lr)[-1]))
        for s in range(30)
    ]
    assert np.mean(held) >= 0.73


def test_the_order_of_rows_changes_nothing() -> None:
    rows = table(cosine(2000))
    order = np.random.default_rng(0).permutation(len(rows))
    first = fit_curve(rows, fit_until="70%").predict(step=2000)
    again = fit_curve([rows[i] for i in order], fit_until="70%").predict(step=2000)
    assert first == again


def test_command_reveals_what_was_not_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.csv"
    path.write_text("step,lr,loss\n" + "".join(f"{r['step']},{r['lr']},{r['loss']}\n" for r in table(cosine(2000))))
    assert main(["curve", str(path), "--until", "70%", "--figure", str(tmp_path / "c.png")]) == 0
    said = capsys.readouterr().out
    assert "revealed" in said and (tmp_path / "c.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "words",
    [
        ["--until", "0"],
        ["--until", "lots"],
        ["--law", "linear"],
        ["--to", "5000"],
        ["--level", "2"],
        ["--loss", "lss"],
        ["--run", "b"],
        ["--figure", "c.txt"],
    ],
)
def test_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    path = tmp_path / "run.csv"
    path.write_text("step,lr,loss\n" + "".join(f"{r['step']},{r['lr']},{r['loss']}\n" for r in table(cosine(1000))))
    assert main(["curve", str(path), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
