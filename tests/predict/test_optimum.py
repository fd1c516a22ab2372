"""Laws of the optimal LR and batch: what is true is found, what cannot be told is said."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.predict.optima import grid_step
from mutransfer.predict.optimum import OptimumLaw, fit_optimum
from mutransfer.predict.regression import regress

Rows = list[dict[str, Any]]
K, A, B = 1.79, -0.713, 0.307  # Step Law's LR, and its batch of 0.58·D^0.571


def step_law(n: Any, d: Any) -> Any:
    return K * n**A * d**B


def optima(seed: int, count: int = 12, scatter: float = 0.0) -> Rows:
    """A table of optima; `scatter` in octaves."""
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7.5, 9.5, count), 10 ** rng.uniform(9, 11, count)
    lr = step_law(n, d) * 2 ** (scatter * rng.normal(size=count))
    return [{"params": float(a), "tokens": float(b), "lr": float(c)} for a, b, c in zip(n, d, lr, strict=True)]


def valley(d: Any, kind: str) -> Any:
    """Rise of the loss at d octaves from the optimum, in units of one octave's."""
    if kind == "wall":
        return np.where(d > 1.1, np.inf, d * d)
    return (np.exp(0.5 * d) - 0.5 * d - 1) * 8 if kind == "steep" else d * d


def sweeps(seed: int, kind: str = "parabola", sizes: int = 5, low: float = -14, drift: float = -0.5, noise: float = 0.001) -> Rows:  # fmt: skip
    """Runs over LRs, steps of 2, at several sizes; the optimum moves by `drift` octaves per doubling from 2^-8 at 10⁷ parameters."""
    rng = np.random.default_rng(seed)
    rows, offset = [], rng.uniform(0, 1)
    for i in range(sizes):
        n = 1e7 * 4**i
        for x in np.arange(low, -4.9) + offset:
            loss = (2 + 3 * 4 ** (-0.1 * i)) * (1 + 0.006 * valley(x + 8 - 2 * drift * i, kind)) * (1 + noise * rng.normal())  # fmt: skip
            rows.append({"params": n, "lr": float(2**x), "loss": float(loss) if np.isfinite(loss) else "nan"})
    return rows


def surfaces(seed: int, kind: str = "parabola", batches: tuple[float, ...] = tuple(2.0**k for k in range(4, 12))) -> Rows:  # fmt: skip
    """Runs over LRs and batches (of 2,048 tokens) at 3 × 3 sizes; the best LR grows with the square root of the batch."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in (1e8, 3e8, 1e9):
        for d in (2e9, 5e9, 1.5e10):
            best = np.log2(0.58 * d**0.571 / 2048)
            for x in np.arange(-12.5, -6.4, 0.5):
                for batch in batches:
                    away = np.log2(batch) - best
                    rise = 0.005 * valley(x - np.log2(step_law(n, d)) - 0.5 * away, kind) + 0.0025 * away**2
                    loss = (1.7 + 400 / n**0.34 + 400 / d**0.28) * (1 + rise) * (1 + 0.001 * rng.normal())
                    rows.append({"N": n, "D": d, "lr": float(2**x), "bs": batch, "loss": float(loss) if np.isfinite(loss) else "nan"})  # fmt: skip
    return rows


def holds(law: OptimumLaw, **truth: float) -> bool:
    return all(law.exponents[name].low <= value <= law.exponents[name].high for name, value in truth.items())


def test_exact_optima_give_the_published_law() -> None:
    law = fit_optimum(optima(0))
    assert law.on == ("params", "tokens") and law.formula == "lr* = 1.79·params^-0.713·tokens^0.307"
    assert [law.exponents[n].value for n in law.on] == pytest.approx([A, B], abs=1e-9)
    assert law.constant.value == pytest.approx(K, rel=1e-6) and "2503.04715" in law.source
    p = law.predict(params=1.4e9, tokens="30B")
    assert p.value == pytest.approx(step_law(1.4e9, 3e10), rel=1e-6) and p.low == pytest.approx(p.high, rel=1e-5)
    assert all(one.inside or abs(one.octaves) < 1e-6 for one in law.held_out) and len(law.held_out) == 3


def test_intervals_hold_the_truth_at_their_level() -> None:
    inside, held, sets = np.zeros(3), [], 300
    for seed in range(sets):
        law = fit_optimum(optima(seed, 5 + seed % 12, 0.2))
        p = law.predict(params=1e10, tokens=1e12)
        actual = step_law(1e10, 1e12) * 2 ** (0.2 * np.random.default_rng(10_000 + seed).normal())
        inside += [holds(law, params=A), holds(law, tokens=B), p.low <= actual <= p.high]
        held += [one.inside for one in law.held_out]
    assert np.all((inside / sets > 0.86) & (inside / sets < 0.94)), inside / sets
    assert 0.86 < np.mean(held) < 0.94 and len(held) > 500


def test_neither_order_nor_units_change_the_law() -> None:
    rows = optima(1, scatter=0.2)
    law = fit_optimum(rows)
    mixed = rows[:]
    random.Random(0).shuffle(mixed)
    assert fit_optimum(mixed).to_dict() == law.to_dict()
    millions = [{"params (M)": r["params"] / 1e6, "tokens_B": r["tokens"] / 1e9, "best_lr": r["lr"]} for r in rows]
    other = fit_optimum(millions)
    assert other.formula == law.formula
    at = {"params": 1e9, "tokens": 1e11}
    assert other.predict(None, **at).value == pytest.approx(law.predict(None, **at).value, rel=1e-9)
    logs = fit_optimum([{"params": r["params"], "tokens": r["tokens"], "log2_lr": np.log2(r["lr"])} for r in rows])
    assert logs.formula == law.formula
    runs = sweeps(0)
    mixed = runs[:]
    random.Random(0).shuffle(mixed)
    assert fit_optimum(mixed).to_dict() == fit_optimum(runs).to_dict()


@pytest.mark.parametrize("kind", ["parabola", "steep", "wall"])
def test_optima_are_found_in_valleys(kind: str) -> None:
    laws = [fit_optimum(sweeps(seed, kind, noise=0.002)) for seed in range(12)]
    assert np.mean([law.exponents["params"].value for law in laws]) == pytest.approx(-0.5, abs=0.02)
    assert sum(holds(law, params=-0.5) for law in laws) >= 9
    at = 2.0 ** (-8 - 0.5 * np.log2(1000))
    predictions = [law.predict(params=1e10) for law in laws]
    assert sum(p.low <= at <= p.high for p in predictions) >= 9
    assert all(law.measured == 5 and law.movement("params") for law in laws)


def test_the_exponent_is_the_drift_of_the_verdict() -> None:
    rows = [{"width": round(64 * (r["params"] / 1e7) ** 0.5), "lr": r["lr"], "loss": r["loss"]} for r in sweeps(3)]
    law, verdict = fit_optimum(rows), mt.transfer_verdict(rows)
    assert law.exponents["width"].value == pytest.approx(verdict.drift.value, abs=0.03)
    assert law.exponents["width"].value == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("kind", ["parabola", "steep"])
def test_a_grid_that_ends_above_the_optimum_does_not_flatten_the_law(kind: str) -> None:
    found, naive = [], []
    for seed in range(10):
        rows = sweeps(seed, kind, sizes=7, low=-12)
        law = fit_optimum(rows)
        assert (law.optima.side[-2:] == -1).all() and any(
            "is the lowest that was run at params" in n for n in law.notes
        )
        found.append(law.exponents["params"].value)
        best = [min((r for r in rows if r["params"] == n), key=lambda r: float(r["loss"])) for n in sorted({r["params"] for r in rows})]  # fmt: skip
        naive.append(np.polyfit(np.log2([r["params"] for r in best]), np.log2([r["lr"] for r in best]), 1)[0])
    assert np.mean(found) == pytest.approx(-0.5, abs=0.02) and np.mean(naive) > -0.42


def test_one_sided_rows_remove_the_bias_of_leaving_them_out() -> None:
    rng, kept, left = np.random.default_rng(0), [], []
    for _ in range(80):
        x = np.column_stack([np.ones(16), np.linspace(-2, 2, 16)])
        y = x @ [0.0, -0.5] + 0.4 * rng.normal(size=16)
        side = np.where(y < -0.5, -1, 0)
        y = np.maximum(y, -0.5)
        kept.append(regress(x, y, np.zeros(16), side).beta[1])
        left.append(regress(x[side == 0], y[side == 0], np.zeros(int((side == 0).sum())), side[side == 0]).beta[1])
    assert np.mean(kept) == pytest.approx(-0.5, abs=0.04) and np.mean(left) > -0.42


def test_diverged_and_stopped_runs_bound_the_valley() -> None:
    rows = sweeps(2, "wall")
    stopped = [{**r, "status": "stopped" if r["loss"] == "nan" else "finished"} for r in rows]
    assert fit_optimum(stopped).exponents["params"].value == pytest.approx(-0.5, abs=0.1)
    blown = [{**r, "loss": 1e6 if r["loss"] == "nan" else r["loss"]} for r in rows]
    assert fit_optimum(blown).formula == fit_optimum(rows).formula


@pytest.mark.parametrize("kind", ["parabola", "steep", "wall"])
def test_lr_and_batch_are_found_together(kind: str) -> None:
    rows = surfaces(0, kind)
    lr, batch = fit_optimum(rows), fit_optimum(rows, "batch")
    assert [lr.exponents[n].value for n in ("params", "tokens")] == pytest.approx([A, B], abs=0.05)
    assert [batch.exponents[n].value for n in ("params", "tokens")] == pytest.approx([0, 0.571], abs=0.05)
    assert batch.movement("params") is False and "surfaces" in lr.optima.kind
    assert batch.predict(params=1e9, tokens=1e10).value == pytest.approx(0.58 * 1e10**0.571 / 2048, rel=0.1)


def test_a_best_batch_at_the_end_of_those_run_is_no_optimum() -> None:
    rows = surfaces(1, batches=(12.0, 24.0, 48.0, 96.0, 192.0))
    batch, lr = fit_optimum(rows, "batch"), fit_optimum(rows)
    longest = batch.optima.variables["tokens"] > 1e10
    assert (batch.optima.side == np.where(longest, 1, 0)).all()
    assert any("the best batch is the highest that was run" in note for note in batch.notes)
    assert batch.exponents["tokens"].value == pytest.approx(0.571, abs=0.1)
    assert lr.measured == 6 and holds(lr, params=A, tokens=B)
    assert [why for _, why in lr.optima.left_out] == [
        "its best batch is at the upper end of those run, and the LR belongs to it"
    ] * 3


def test_few_batches_make_the_batch_a_variable() -> None:
    law = fit_optimum(surfaces(0, batches=(64.0, 256.0)))
    assert law.on == ("params", "tokens", "batch")
    assert law.exponents["batch"].value == pytest.approx(0.5, abs=0.05)
    assert law.exponents["tokens"].value == pytest.approx(B - 0.5 * 0.571, abs=0.05)
    one = fit_optimum(surfaces(0, batches=(64.0, 256.0)), where={"bs": 64})
    assert one.on == ("params", "tokens") and one.exponents["tokens"].value == pytest.approx(B - 0.5 * 0.571, abs=0.05)
    many = fit_optimum(surfaces(0, batches=(32.0, 128.0, 512.0)), on="N,D,batch")
    assert many.exponents["batch"].value == pytest.approx(0.5, abs=0.03)


def test_tokens_in_proportion_to_parameters_leave_one_exponent() -> None:
    rows = [{**r, "tokens": 20 * r["params"], "lr": step_law(r["params"], 20 * r["params"])} for r in optima(0)]
    law = fit_optimum(rows)
    assert law.on == ("params",) and law.exponents["params"].value == pytest.approx(A + B)
    assert "tokens = 20 × params in every row" in " ".join(law.notes)
    assert not law.predict(params=1e9, tokens=2e10).notes
    assert "is not the 2e+10 that goes with this params" in law.predict(params=1e9, tokens=1e12).notes[0]
    for on in ("params,tokens", ("N", "D")):
        with pytest.raises(InputError, match="tokens = 20 × params in every row: the exponents of both cannot be told apart; write on='params'"):  # fmt: skip
            fit_optimum(rows, on=on)
    compute = fit_optimum(rows, on="compute")
    assert compute.exponents["compute"].value == pytest.approx((A + B) / 2)
    assert compute.predict(params=1e9, tokens=2e10).value == pytest.approx(step_law(1e9, 2e10), rel=1e-6)


def test_one_size_that_is_off_does_not_bend_the_law() -> None:
    rows = optima(5, 14, 0.15)
    clean = fit_optimum(rows)
    rows[4]["lr"] *= 16
    law = fit_optimum(rows)
    assert law.outliers == (f"params {rows[4]['params']:.4g}, tokens {rows[4]['tokens']:.4g}",)
    assert law.exponents["params"].value == pytest.approx(clean.exponents["params"].value, abs=0.06)
    assert not clean.outliers and "outlier" in law.words()


def test_an_exponent_that_rests_on_one_size_is_said() -> None:
    rows = [{"params": n, "lr": 1e-3 * (n / 1e7) ** -0.4} for n in (1e7, 1.1e7, 1.2e7, 0.9e7, 1e9)]
    assert fit_optimum(rows).heavy == ("params 1e+09",)


def test_the_same_lr_at_every_size_does_not_move_and_is_not_known_better_than_its_grid() -> None:
    law = fit_optimum([{**r, "lr": 0.002} for r in optima(0)])
    e = law.exponents["params"]
    assert law.movement("params") is False and e.low < -0.02 and e.high > 0.02
    assert "it does not move with params, as under μP" in law.words() and "steps of 2 are assumed" in law.words()
    few = fit_optimum([{"params": n, "lr": 0.002} for n in (1e7, 2e7, 4e7)])
    assert few.movement("params") is None and "whether it moves is not told" in few.words()


def test_the_step_of_a_grid_is_an_error_of_its_optima() -> None:
    steps = np.round(np.linspace(-12, -6, 20) * 2) / 2
    assert grid_step(np.log2(np.round(2**steps, 6))) == pytest.approx(0.5, abs=0.02)
    assert grid_step(np.log2([1e-4, 3e-4, 1e-3, 3e-3, 1e-3, 3e-4])) == pytest.approx(1.58, abs=0.02)
    assert grid_step(np.random.default_rng(0).uniform(-12, -6, 20)) == 0
    rows = [{**r, "lr": 2.0 ** round(np.log2(r["lr"]))} for r in optima(0, 15)]
    law = fit_optimum(rows)
    assert law.optima.error[0] == pytest.approx(1 / np.sqrt(12)) and holds(law, params=A, tokens=B)
    assert any("a grid of steps of 2" in note for note in law.notes)
    ended = fit_optimum([{**r, "lr": max(r["lr"], 2.0**-10)} for r in rows])
    assert any("have the lowest LR of the table" in note for note in ended.notes)


def test_how_far_a_target_lies_is_said() -> None:
    law = fit_optimum(optima(0, scatter=0.1))
    near, far = law.predict(params=5e8, tokens=1e10), law.predict(params=1e13, tokens=1e10)
    assert near.decades == 0 and not near.notes
    assert far.decades > 3 and "farther than they span themselves: the law is a guess there" in far.notes[0]
    assert far.high / far.low > near.high / near.low
    wide = law.predict(level=0.99, params=5e8, tokens=1e10)
    assert wide.high / wide.low > near.high / near.low
    assert law.words(params=5e8, tokens=1e10).startswith("at params 5e+08, tokens 1e+10 use lr ")


def test_the_backtest_hides_the_largest_sizes() -> None:
    rows = optima(2, 16, 0.1)
    law = fit_optimum(rows, hold_out="largest:5")
    sizes = sorted(rows, key=lambda r: r["params"] * r["tokens"])
    assert [one.actual for one in law.held_out] == pytest.approx([r["lr"] for r in sizes[-5:]])
    assert max(abs(one.octaves) for one in law.held_out) < 0.5
    bent = [{**r, "lr": r["lr"] * (1 if r in sizes[:-5] else 8)} for r in rows]
    broken = fit_optimum(bent, hold_out=5)
    assert any("5 of the 5 largest sizes lie outside what the smaller ones predict" in note for note in broken.notes)
    assert min(one.octaves for one in broken.held_out) < -2
    assert len(law.dropped) == 16 and fit_optimum(rows, hold_out=0).held_out == ()


def test_everything_is_plain_json() -> None:
    law = fit_optimum(sweeps(0, low=-12, sizes=6))
    told = json.loads(json.dumps(law.to_dict(), allow_nan=False))
    assert told["on"] == ["params"] and len(told["optima"]) == len(law.optima) and told["words"] == str(law)
    assert json.dumps(law.predict(params=1e9).to_dict(), allow_nan=False)


GOOD, RUNS = optima(0, 6), sweeps(0)


@pytest.mark.parametrize(
    ("rows", "arguments", "line"),
    [
        (GOOD[:2], {}, r"2 sizes with an optimum: lr\* = k·params\^a needs 3 or more; add sizes"),
        (GOOD[:3], {}, r"3 sizes with an optimum: lr\* = k·params\^a·tokens\^b needs 4 or more; add sizes, or write on='params'"),
        (GOOD, {"of": "decay"}, 'of=\'decay\': write "lr" or "batch"'),
        (GOOD, {"on": "size"}, "on='size': write one or more of params, "),
        (GOOD, {"on": "width"}, "on: no width is read for every size; there are "),
        (GOOD, {"level": 90}, "level=90: write a level between 0.5 and 0.99"),
        (GOOD, {"of": "batch"}, "the table has no column for a batch, such as 'batch_size'"),
        (GOOD, {"hold_out": "smallest:2"}, "hold_out='smallest:2': write \"largest:3\", 3, or 0 for none"),
        (GOOD, {"hold_out": 6}, "hold_out=6: 6 sizes have an optimum and the law needs 4; hold out 2 or fewer"),
        ([{"params": r["params"], "tokens": r["tokens"]} for r in GOOD], {}, "the table has no column for a learning rate"),
        ([{**r, "lr": "fast"} for r in GOOD], {}, "the table has no column for a learning rate|lr='fast' is not a number"),
        ([{**GOOD[0], "params": "big"}, *GOOD[1:]], {}, "params='big' is not a number; write it in figures"),
        ([{**GOOD[0], "lr": 0.0}, *GOOD[1:]], {}, "lr=0: a learning rate must be above 0"),
        ([{**r, "tokens": 1e9} for r in GOOD], {"on": "params,tokens"}, "on: tokens is 1e\\+09 in every row with an optimum"),
        ([{**r, "params": 1e8, "tokens": 1e9} for r in GOOD], {}, "no size and no tokens vary among the sizes with an optimum"),
        ([r for r in RUNS if 2**-9 < r["lr"] < 2**-7], {}, "no size has its best LR inside what was run .*fewer than three LRs with a loss"),
        ([r for r in RUNS if r["lr"] > 2**-8.2 and r["params"] > 2e7], {}, "no size has its best LR inside what was run \\(4 at the edge"),
        ([{**r, "loss": "nan"} for r in RUNS], {}, "every run diverged"),
        ([{**r, "lr": 0.01} for r in RUNS[::3]], {}, "lr is 0.01 in every run: to find optima, run several at each size"),
        ([{**r, "recipe": one} for r in RUNS for one in ("sp", "mup")], {}, 'recipe varies too .*write where={"recipe": '),
        ([{**r, "norm": one, "params": r["params"] * (1 + 0.01 * k)} for r in RUNS for k, one in enumerate(("layernorm", "none"))], {}, "norm varies too"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_one_line(rows: Rows, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        fit_optimum(rows, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("at", "line"),
    [
        ({"params": 1e9}, "the law is in params, tokens: write tokens=… too"),
        ({"params": -1, "tokens": 1e9}, "params=-1: write a number above 0"),
        ({"params": "many", "tokens": 1e9}, "params='many' is not a number"),
        ({"params": 1e9, "tokens": 1e9, "heads": 3}, "heads=3 is no variable: the law is in params, tokens"),
    ],
)
def test_a_target_that_is_none_is_one_line(at: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        fit_optimum(GOOD).predict(None, **at)


def test_a_run_that_diverged_at_once_has_no_compute() -> None:
    rows = [{**r, "flops": 0.0 if r["loss"] == "nan" else 6e15 * r["params"] * (1 + 1e7 / r["params"] / 9)} for r in sweeps(0, "wall")]  # fmt: skip
    law = fit_optimum(rows)
    assert law.on == ("params",) and law.exponents["params"].value == pytest.approx(-0.5, abs=0.05)
    assert any("one length of training is assumed" in note for note in law.notes)
