"""Laws of a learning curve: their published forms, calibrated intervals under correlated noise, other schedules, bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutransfer.cli import main
from mutransfer.errors import InputError
from mutransfer.predict.correlated import Chain, whiten
from mutransfer.predict.curve import fit_curve
from mutransfer.predict.curve_laws import curve_law
from mutransfer.predict.curve_read import read_runs, thinned
from mutransfer.predict.schedules import Schedule, of_points, shaped
from mutransfer.sweep.store import Store
from mutransfer.train.schedule import SCHEDULES, multiplier
from tests.predict.curves import PEAK, STEPS, law, noise, schedule, table


def named(name: str, rows: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    return [{**row, "run": name, **more} for row in rows]


@pytest.mark.parametrize("shape", SCHEDULES)
def test_schedules_are_those_of_our_training_loop(shape: str) -> None:
    settings = {"warmup": 7, "final_lr_ratio": 0.05, "wsd_decay_fraction": 0.3}
    ours = [3e-4 * multiplier(i, steps=90, schedule=shape, **settings) for i in range(90)]  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(shaped(shape, 90, lr=3e-4, **settings).lr, ours, rtol=1e-12)


@pytest.mark.parametrize("shape", ["cosine", "wsd", "linear"])
def test_laws_are_the_published_sums(shape: str) -> None:
    made = shaped(shape, 700, lr=PEAK, warmup=50, final_lr_ratio=0.02)
    steps, eta, drops = np.array([60, 300, 590, 700]), made.lr, made.drops
    decay = 0.98
    found = curve_law("annealing").drops(made, steps, np.array([[np.log(1 - decay)]]), PEAK)[0]
    s2 = [sum(drops[k] * sum(decay ** (i - k) for i in range(k, t)) for k in range(t)) for t in steps]
    np.testing.assert_allclose(found, np.array(s2) * (1 - decay) / PEAK, atol=1e-12)
    theta = np.array([[np.log(0.05), np.log(0.6), 0.65], [np.log(0.5), np.log(1.1), 0.2]])
    found = curve_law("multi-power").drops(made, steps, theta, PEAK)
    for row, (log_rate, log_beta, gamma) in zip(found, theta, strict=True):
        c = np.exp(log_rate) * PEAK ** (gamma - 1)
        ld = [sum(drops[k] * (1 - (1 + c * eta[k] ** -gamma * eta[k:t].sum()) ** -np.exp(log_beta)) for k in range(t)) for t in steps]  # fmt: skip
        np.testing.assert_allclose(row, np.array(ld) / PEAK, atol=2e-3)  # falls are summed over intervals


@pytest.mark.parametrize("w", [0.3, 0.0])
def test_whitening_is_that_of_the_whole_covariance(w: float) -> None:
    """Two runs; without white noise the second is a branch of the first: along the tree, distances in steps."""
    gap = np.array([np.inf, 3.0, 5.0, 2.0, np.inf if w else 4.0, 1.0])
    parent = np.array([-1, 0, 1, 2, -1 if w else 1, 4])
    white, tau, ends = np.array([1.0, 0.5, 1.0, 1.0, 0.25, 1.0]), 7.0, [0, 3, 8, 10, 7, 8]
    cov = np.empty((6, 6))
    for i in range(6):
        for j in range(6):
            other = (i > 3) != (j > 3)
            apart = np.inf if other and w else abs(ends[i] - ends[j])
            if other and not w and {i, j} & {2, 3}:  # back to the row they part at, and on
                apart = ends[i] + ends[j] - 2 * 3
            cov[i, j] = (1 - w) * np.exp(-apart / tau) + (w * white[i] if i == j else 0)
    y = np.random.default_rng(0).standard_normal((6, 2))
    found = whiten(Chain(gap, parent, white), y[None], np.array([tau]), np.array([w]))
    rows = found.rows[0]
    np.testing.assert_allclose(rows.T @ rows, y.T @ np.linalg.solve(cov, y), rtol=1e-10)
    assert found.log_det[0] == pytest.approx(np.linalg.slogdet(cov)[1])


def test_intervals_hold_nine_of_ten_under_autocorrelated_noise() -> None:
    """The last loss, from the first 70 % of the steps; noise with a lag-1 correlation of 0.97 about laws drawn anew."""
    rng = np.random.default_rng(7)
    made, step = schedule("cosine"), np.arange(120, STEPS + 1, 120)
    hits, held, sets = 0, 0, 160
    for i in range(sets):
        truth: dict[str, Any] = dict(
            level=rng.uniform(1.8, 3),
            fall=rng.uniform(0.3, 1),
            alpha=rng.uniform(0.3, 0.7),
            worth=rng.uniform(0.05, 0.2),
        )
        loss = law(made, step, **truth) * np.exp(0.002 * noise(rng, len(step), 0.97))
        fitted = fit_curve({"step": step, "lr": made.lr[step - 1], "loss": loss}, fit_until="70%", seed=i)
        hits += fitted.predict(STEPS).holds(loss[-1])
        held += fitted.revealed()[0].holds
    assert 0.84 <= hits / sets <= 0.96, hits / sets
    assert held / sets >= 0.84, held / sets


def test_parameters_come_back_in_the_units_of_the_table() -> None:
    rows = [
        *named("a", table("cosine", sigma=2e-4, phi=0.0, every=20)),
        *named("b", table("wsd", sigma=2e-4, phi=0.0, every=20, seed=1)),
    ]
    fitted = fit_curve(rows)
    truth = {"L0": 2.2, "α": 0.5, "λ": 0.998, "C": 0.12 * 2e-3 / PEAK, "A": 0.5 * (PEAK * STEPS) ** 0.5}
    for name, value in truth.items():
        found = fitted.parameters[name]
        assert found.low <= value <= found.high and abs(found.value / value - 1) < 0.1, (name, found, value)
    assert not fitted.warnings
    milli = fit_curve([{**row, "lr": row["lr"] * 1e3} for row in rows])  # the LR in another unit: the same losses
    there = schedule("linear")
    one, other = fitted.predict(STEPS, there), milli.predict(STEPS, Schedule(there.lr * 1e3))
    assert other.loss == pytest.approx(one.loss, rel=1e-6) and other.high == pytest.approx(one.high, rel=1e-6)
    mixed = random.Random(0).sample(rows, len(rows))
    assert fit_curve(mixed).predict(STEPS, there, run="a") == fitted.predict(STEPS, there, run="a")


@pytest.mark.parametrize("name", ["annealing", "multi-power"])
def test_another_schedule_of_the_same_model_is_predicted(name: str) -> None:
    fitted = fit_curve(table("cosine", name, every=30, sigma=5e-4), name)
    for shape in ("constant", "wsd"):
        truth = float(law(schedule(shape), np.array([STEPS]), name)[0])
        found = fitted.predict(schedule=dict(schedule=shape, steps=STEPS, lr=PEAK, warmup=200))
        assert found.law_low - 0.01 <= truth <= found.law_high + 0.01 and found.holds(truth)
        assert not found.continued and found.half_width < 0.03
    assert fitted.predict(STEPS).continued


def test_a_decay_that_was_not_seen_is_a_guess_and_says_so() -> None:
    fitted = fit_curve(table("wsd", every=30), fit_until=4500)
    assert any("has not fallen" in text for text in fitted.warnings)
    before, after = fitted.predict(4700), fitted.predict(STEPS)
    assert before.half_width < 0.01 and after.half_width > 0.03
    assert after.holds(table("wsd", every=30)[-1]["loss"])
    seen = fit_curve(table("wsd", every=30))
    assert not any("has not fallen" in text for text in seen.warnings)


def test_runs_that_branch_share_their_first_rows() -> None:
    """A constant run, and one that decays from it: the shared part counts once, and the branch goes on from where it left."""
    constant, decayed = table("constant"), table("wsd", seed=1)
    apart = next(i for i, row in enumerate(decayed) if row["lr"] < 0.999 * PEAK and row["step"] > 1000)
    rows = [*named("all", constant), *named("branch", [*constant[:apart], *decayed[apart:]])]
    curves = read_runs(rows)
    assert curves.runs[1].branch == ("all", constant[apart - 1]["step"]) and len(curves.runs[1]) == len(decayed) - apart
    assert any("count once" in note for note in curves.notes)
    fitted = fit_curve(rows, fit_until=3000)
    assert fitted.predict(4000, run="branch") == fitted.predict(4000, run="all").__class__(
        **{**fitted.predict(4000, run="all").__dict__, "run": "branch"}
    )


def test_without_a_learning_rate_a_power_law_that_warns() -> None:
    rows = [{"step": row["step"], "loss": row["loss"]} for row in table("constant", "power", sigma=5e-4)]
    fitted = fit_curve(rows, fit_until="60%")
    assert fitted.form.name == "power" and fitted.predict(STEPS).holds(rows[-1]["loss"])
    assert any("constant LR only" in text for text in fitted.warnings)
    assert fit_curve(table(), "power").warnings[0].startswith("a power law in steps is wrong where the LR decays")
    with pytest.raises(InputError, match="knows no learning rate"):
        fitted.predict(schedule=schedule("cosine"))


def test_a_wrong_law_is_caught_by_its_backtest_and_widens() -> None:
    """A loss that falls ever slower, then faster: no power law."""
    step = np.arange(60, STEPS + 1, 60)
    loss = 2 + (step / STEPS) ** -0.3 - 0.4 * np.maximum(step / STEPS - 0.3, 0) ** 2
    fitted = fit_curve(
        {"step": step, "loss": loss * np.exp(3e-4 * noise(np.random.default_rng(0), len(step), 0.3))}, fit_until="80%"
    )
    assert fitted.backtest is not None and fitted.backtest.missed
    assert any("misses its own backtest" in text for text in fitted.warnings)
    assert fitted.predict(STEPS).half_width > 3 * float(np.median(fitted.posterior.sigma))


def test_spikes_are_set_aside_and_dense_logs_are_averaged() -> None:
    rows = table("cosine", every=5, sigma=0.01, phi=0.0)
    plain = fit_curve(rows, fit_until="70%").predict(STEPS)
    for i in (300, 301, 500):
        rows[i] = {**rows[i], "loss": 3 * rows[i]["loss"]}
    spiked = fit_curve(rows, fit_until="70%")
    assert spiked.spikes == 3 and len(spiked.rows) <= 200
    assert spiked.predict(STEPS).loss == pytest.approx(plain.loss, rel=3e-3)
    assert 1.645 * 0.01 < plain.half_width < 0.03  # the noise of one logged row is in it, and not much else
    step, loss = np.arange(1.0, 1001), np.random.default_rng(0).standard_normal(1000) * 0.1 + 3
    at, mean, count, variance = thinned(step, loss, 50)
    assert len(at) <= 50 and count.sum() == 1000 and (mean * count).sum() == pytest.approx(loss.sum())
    assert np.sqrt(variance) == pytest.approx(0.1 / 3, rel=0.1)


def test_units_of_the_loss() -> None:
    rows = table(every=100)
    nats = fit_curve(rows, fit_until="60%").predict(STEPS)
    bits = fit_curve([{**r, "loss": r["loss"] / np.log(2)} for r in rows], fit_until="60%", loss_unit="bits").predict(
        STEPS
    )
    assert bits.high == pytest.approx(nats.high / np.log(2), rel=1e-9)
    told = [{"step": r["step"], "lr": r["lr"], "perplexity": np.exp(r["loss"])} for r in rows]
    assert fit_curve(told, fit_until="60%").predict(STEPS).loss == pytest.approx(np.exp(nats.loss), rel=1e-9)


def test_a_table_that_begins_after_warm_up_says_what_it_assumes() -> None:
    made, said = of_points(np.array([500.0, 510.0, 520.0]), np.array([1e-3, 1e-3, 5e-4]))
    assert said is not None and "warm-up" in said and made.area[500] == pytest.approx(0.25, rel=0.01)
    assert made.warm == 500 and made.falls() == pytest.approx(0.5)


def test_a_sweep_knows_its_schedules_beyond_what_was_trained(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for i, shape in enumerate(("cosine", "constant")):
            config = {"lr": PEAK, "steps": STEPS, "warmup": 200, "schedule": shape, "model": {"width": 32}, "seed": 0}
            points = table(shape, seed=i)[:60]
            store.add({
                "key": f"k{i}", "result": f"r{i}", "status": "finished", "config": config, "metrics": {"val_loss": 2.0, "train_loss": 2.1},
                "version": "1", "environment": {}, "git": "", "ended": "",
            }, points)  # fmt: skip
    curves = read_runs(tmp_path)
    assert [run.name for run in curves.runs] == ["schedule=constant", "schedule=cosine"] and curves.columns[
        "loss"
    ] == "loss"
    found = fit_curve(tmp_path, run="schedule=cosine").predict()
    assert found.step == STEPS and found.continued and found.holds(table("cosine")[-1]["loss"])


ROWS = table(every=100)
BAD: list[tuple[Any, dict[str, Any], str]] = [
    ([{"lr": 1, "loss": 2}] * 30, {}, "no column of steps"),
    ([{"step": i, "lr": 1e-3} for i in range(30)], {}, "no loss that changes"),
    ([*ROWS, ROWS[3]], {}, "two rows of one run have the same step"),
    ([{**r, "loss": -1.0} for r in ROWS], {}, "loss=-1 at step 100: a loss must be above 0"),
    ([{**r, "loss": float("nan")} for r in ROWS], {"loss": "loss"}, "no run has a finite loss"),
    ([{**r, "loss": 30 + r["loss"]} for r in ROWS], {}, "if it is a perplexity"),
    ([{**r, "lr": 0.0} for r in ROWS], {}, "lr is 0 in every row"),
    ([{**r, "lr": -1.0} for r in ROWS], {}, "lr=-1 at step 100"),
    ([{**r, "step": r["step"] * 1e6} for r in ROWS], {}, "not tokens"),
    ([{**r, "step": r["step"] + 0.5} for r in ROWS], {}, "whole numbers"),
    (ROWS[:8], {}, "a curve's law needs 12"),
    (ROWS, {"law": "cubic"}, "law='cubic': write one of annealing"),
    ([{"step": r["step"], "loss": r["loss"]} for r in ROWS], {"law": "annealing"}, "needs the learning rate"),
    (ROWS, {"fit_until": "half"}, "fit_until='half'"),
    (ROWS, {"run": "b"}, "no such run"),
    (ROWS, {"columns": {"rate": "lr"}}, "columns 'rate'"),
    (ROWS, {"schedule": [1e-3] * 10}, "schedule has 10 updates"),
    (ROWS, {"schedule": {"schedule": "step", "steps": 10, "lr": 1}}, "schedule='step'"),
    ([*named("a", ROWS, width=32), *named("b", ROWS, width=64)], {}, "width differs between the runs"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "options", "said"), BAD)
def test_bad_tables_get_one_clear_line(rows: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        fit_curve(rows, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_bad_targets_get_one_clear_line() -> None:
    fitted = fit_curve(ROWS, fit_until="60%")
    for step, schedule_, said in (
        (9000, None, "known up to step 6000"), (12.5, None, "step=12.5"), (10, None, "holds from step"), ("x", None, "step='x'"),
        (None, "cosine", "write its settings"), (None, {"schedule": "cosine", "steps": 10}, "without lr"), (None, [0.0, -1.0], "update 2"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            fitted.predict(step, schedule_)
    with pytest.raises(InputError, match="level"):
        fitted.predict(level=2)


def test_the_command_predicts_reveals_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        Path(name).write_text("step,lr,loss\n" + "\n".join(f"{r['step']},{r['lr']},{r['loss']}" for r in rows))

    write("cosine.csv", table("cosine"))
    write("wsd.csv", table("wsd", seed=1))
    write("off.csv", [r if r["step"] < 4000 else {**r, "loss": 1.3 * r["loss"]} for r in table("cosine")])
    assert main(["curve", "cosine.csv", "--until", "60%", "--to", "5900", "--figure", "a.png"]) == 0
    said = capsys.readouterr().out
    assert "step 5900: loss" in said and "revealed, run: 38 losses" in said and "2408.11029" in said
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert main(["curve", "off.csv", "--until", "60%", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["revealed"][0]["holds"] and found["predictions"][0]["step"] == STEPS
    assert main(["curve", "cosine.csv", "--schedule", "wsd.csv", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert not other["predictions"][0]["continued"] and other["revealed"][0]["holds"]
    assert main(f"curve cosine.csv --schedule schedule=constant steps=8000 lr={PEAK} warmup=200 --to 7000".split()) == 0
    assert "constant, step 7000: loss" in capsys.readouterr().out
    for line in ("curve none.csv", "curve cosine.csv --to 9000", "curve cosine.csv --schedule lr=1", "curve cosine.csv --figure a.txt", "curve cosine.csv --level 2"):  # fmt: skip
        assert main(line.split()) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
