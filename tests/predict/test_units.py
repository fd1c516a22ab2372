"""Sizes and losses come out in units of one, whatever a table writes, and what cannot be is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.predict.names import Known, known, loss_columns, loss_unit_named
from mutransfer.predict.reading import read_points
from mutransfer.predict.units import from_nats, quantity, to_nats, unit
from tests.predict.tables import SIZES, TOKENS, WIDTHS, changed, gpt_params, grid, ladder


@pytest.mark.parametrize(
    "cell, value",
    [
        ("125M", 125e6), ("1.4B", 1.4e9), ("1.4 B", 1.4e9), ("7b", 7e9), ("300B tokens", 3e11), ("2^20", 2**20), ("2**20", 2**20), ("10^9", 1e9),
        ("1e9", 1e9), ("2.6E+18", 2.6e18), ("2.2×10^9", 2.2e9), ("2.2 x 10^9", 2.2e9), ("1,400,000", 1.4e6), ("7 000 000", 7e6), ("1_000", 1000),
        ("1.2 ZFLOPs", 1.2e21), ("3 PF-days", 3 * 8.64e19), (8.53, 8.53), (np.int32(7), 7), ("", None), (None, None), ("n/a", None),
    ],
)  # fmt: skip
def test_cells_are_read_as_people_write_them(cell: Any, value: float | None) -> None:
    found, _ = quantity(cell, "params")
    assert found is None if value is None else found == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "cell, message",
    [("big", "'big' is not a number"), ("3,08", "write a decimal point, 3.08"), ("1,400", "write 1400 or 1.400"), ("1.4Q", "such as 1.4e9 or 1.4B")],
)  # fmt: skip
def test_cells_that_are_no_number_say_what_to_write(cell: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantity(cell, "params")


@pytest.mark.parametrize(
    "name, variable, factor",
    [
        ("params", "params", None), ("N", "params", None), ("n_params", "params", None), ("Model Size", "params", None), ("model_params", "params", None),
        ("params_M", "params", 1e6), ("params (M)", "params", 1e6), ("Params (millions)", "params", 1e6), ("n_params_b", "params", 1e9),
        ("Parameters (2^20)", "params", 2**20), ("Model size (in millions)", "params", 1e6), ("paramsM", "params", 1e6), ("N_total", "params", None),
        ("# params", "params", None), ("params/total", "params", None), ("non_embedding_params", "non_embedding", None), ("N_no_emb", "non_embedding", None),
        ("params_wo_emb", "non_embedding", None), ("non-embedding params (M)", "non_embedding", 1e6), ("D", "tokens", None), ("D (B)", "tokens", 1e9),
        ("tokens_B", "tokens", 1e9), ("Training Tokens", "tokens", None), ("Training Dataset Size", "tokens", None), ("tokens seen (B)", "tokens", 1e9),
        ("unique_tokens", "unique_tokens", None), ("C", "compute", None), ("Training FLOP", "compute", None), ("Training FLOPs", "compute", None),
        ("gflops", "compute", 1e9), ("exaflops", "compute", 1e18), ("FLOPs (1e18)", "compute", 1e18), ("10^18 FLOPs", "compute", 1e18),
        ("PF-days", "compute", 8.64e19), ("compute (PF-days)", "compute", 8.64e19), ("petaflop/s-days", "compute", 8.64e19),
        ("Number of Steps", "steps", None), ("Train steps (k)", "steps", 1e3), ("Batch Size", "batch", None), ("gbsz", "batch", None),
        ("config.n_embd", "width", None), ("config/model.d_model", "width", None), ("n_layer", "depth", None), ("block_size", "context", None),
    ],
)  # fmt: skip
def test_names_as_papers_and_loggers_write_them(name: str, variable: str, factor: float | None) -> None:
    found = known(name)
    assert isinstance(found, Known) and (found.variable, found.unit) == (variable, factor)


@pytest.mark.parametrize(
    "name", ["n", "d", "c", "x", "color", "seconds", "tokens per second", "tflops_per_sec", "C_6ND", "C_no_emb", "total_epochs", "current_epoch", "loss"],
)  # fmt: skip
def test_other_columns_are_no_variable(name: str) -> None:
    """Single letters count in the papers' capitals only; a throughput is no amount."""
    assert known(name) is None


def test_the_loss_is_found_under_any_name_with_loss_in_it() -> None:
    assert loss_columns(["params_M", "train_loss_20k"]) == ["train_loss_20k"]
    assert loss_columns(["C4 Eval Loss", "loss", "loss_std", "z_loss"]) == ["loss", "C4 Eval Loss"]
    assert (
        loss_columns(["PILE test xent"])
        and loss_columns(["Test Cross-Entropy"])
        and loss_columns(["losses"])
        and loss_columns(["L"])
    )
    assert loss_columns(["perplexity", "val_bpb", "val_loss"])[0] == "val_loss"
    assert loss_columns(["loss_scale", "predicted_loss", "l"]) == []


def test_the_published_table_is_in_units_of_two_to_the_twenty(shared: Path) -> None:
    """Its width² share is 12·12.000 in these units and 137.3 in millions: 12 layers, as the paper says."""
    points = read_points(shared / "data" / "mu_scaling_gpt2_losses.csv")
    assert points.variables["params"][-1] == pytest.approx(1446.72 * 2**20)
    assert points.constants["depth"] == 12
    assert points.columns["loss"] == "train_loss_20k"
    assert any("2^20" in note and "137.3" in note for note in points.notes)


@pytest.mark.parametrize("with_depth", [True, False])
@pytest.mark.parametrize("factor", [1e6, 2.0**20])
def test_millions_and_two_to_the_twenty_are_told_apart_by_the_width(factor: float, with_depth: bool) -> None:
    depth = {"n_layer": 6} if with_depth else {}
    rows = [
        {"width": w, "params_M": round(gpt_params(w, 6) / factor, 2), "loss": 3 - i / 10, **depth}
        for i, w in enumerate(WIDTHS)
    ]
    points = read_points(rows)
    assert points.variables["params"] == pytest.approx([gpt_params(w, 6) for w in WIDTHS], rel=1e-3)
    assert any("2^20" in note for note in points.notes) == (factor != 1e6)


def test_depths_that_vary_tell_it_too() -> None:
    shapes = [(128, 4), (256, 4), (256, 8), (512, 8), (512, 12), (768, 12), (1024, 16)]
    rows = [
        {"width": w, "depth": n, "params_M": gpt_params(w, n) / 2**20, "loss": 3 - i / 10}
        for i, (w, n) in enumerate(shapes)
    ]
    assert read_points(rows).variables["params"] == pytest.approx([gpt_params(w, n) for w, n in shapes], rel=1e-9)


def test_a_unit_that_is_declared_is_not_second_guessed() -> None:
    rows = [{"width": w, "params_M": gpt_params(w) / 2**20, "loss": 3 - i / 10} for i, w in enumerate(WIDTHS)]
    points = read_points(rows, units={"params": 1e6})
    assert points.variables["params"][0] == pytest.approx(gpt_params(128) / 2**20 * 1e6)


def test_a_missing_unit_is_read_off_the_width_or_said_to_be_missing() -> None:
    rows = [{"width": w, "params": gpt_params(w) / 1e6, "loss": 3 - i / 10} for i, w in enumerate(WIDTHS)]
    assert read_points(rows).variables["params"][0] == pytest.approx(gpt_params(128))
    points = read_points([{"N": n, "loss": 3 - i / 10} for i, n in enumerate((0.07, 0.16, 0.41, 1.4))])
    assert points.variables["params"][-1] == 1.4 and any("says no unit" in note for note in points.notes)


def test_params_that_are_no_transformers_keep_their_unit() -> None:
    rows = [
        {"width": w, "params_M": (3 * 2.6 * 4 * w**2 + 900 * w) / 1e6, "loss": 3 - i / 10} for i, w in enumerate(WIDTHS)
    ]
    assert read_points(rows).variables["params"][0] == pytest.approx(3 * 2.6 * 4 * 128**2 + 900 * 128)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64, object, float])
def test_six_n_d_does_not_overflow(kind: Any) -> None:
    """6·2·10^9·2·10^9 is above 2^63, and each factor below 2^31."""
    n, d = np.array([2e8, 4e8, 8e8, 2e9]).astype(kind), np.array([1e9, 2e9, 2.1e9, 2e9]).astype(kind)
    points = read_points({"params": n, "tokens": d, "loss": [3.0, 2.8, 2.6, 2.5]})
    assert points.variables["compute"] == pytest.approx(6 * n.astype(float) * d.astype(float), rel=1e-12)
    assert points.variables["compute"].dtype == np.float64


@pytest.mark.parametrize("missing, column", [("compute", "C"), ("tokens", "D"), ("params", "N")])
def test_of_params_tokens_and_compute_two_give_the_third(missing: str, column: str) -> None:
    rows = [{k: v for k, v in {**row, "C": 6 * row["N"] * row["D"]}.items() if k != column} for row in grid()]
    points = read_points(rows)
    v = points.variables
    assert v["compute"] == pytest.approx(6 * v["params"] * v["tokens"], rel=1e-12)
    assert any(note.startswith(f"{missing} = ") for note in points.notes) and points.columns[missing] == ""


def test_tokens_are_batch_times_context_times_steps() -> None:
    rows = [{**row, "batch_size": 12, "block_size": 256, "max_iters": 1000 * (i + 1)} for i, row in enumerate(ladder())]
    assert read_points(rows).variables["tokens"] == pytest.approx([12 * 256 * 1000 * (i + 1) for i in range(len(rows))])
    rows = [{**row, "tokens_per_step": 500_000, "steps": 1000 * (i + 1)} for i, row in enumerate(ladder())]
    assert read_points(rows).variables["tokens"] == pytest.approx([5e8 * (i + 1) for i in range(len(rows))])


def test_epochs_make_distinct_tokens() -> None:
    rows = [{**row, "epochs": 1 + i % 4} for i, row in enumerate(grid())]
    points = read_points(rows)
    assert (points.variables["unique_tokens"] <= points.variables["tokens"]).all()


@pytest.mark.parametrize("factor, want", [(1e3, 'units={"compute": 1e3}'), (1e6, "1e6"), (1e9, "1e9"), (1e18, 'units={"compute": 1e18}'), (8.64e19, '"compute": "PF-days"')])  # fmt: skip
def test_a_wrong_unit_of_compute_is_named(factor: float, want: str) -> None:
    rows = [{**row, "C": 6 * row["N"] * row["D"] / factor} for row in grid()]
    with pytest.raises(InputError) as error:
        read_points(rows)
    assert want in str(error.value)
    declared = read_points(rows, units={"compute": factor})
    assert declared.variables["compute"] == pytest.approx(
        6 * declared.variables["params"] * declared.variables["tokens"]
    )


def test_wrong_units_of_sizes_are_named_and_can_be_declared() -> None:
    rows = [{"N": r["N"] / 1e6, "D": r["D"] / 1e9, "C": 6 * r["N"] * r["D"], "loss": r["loss"]} for r in grid()]
    with pytest.raises(InputError, match=r'units=\{"params": 1e6, "tokens": 1e9\}'):
        read_points(rows)
    points = read_points(rows, units={"params": "M", "D": "billions"})
    assert sorted(set(points.variables["params"])) == pytest.approx(SIZES)
    assert sorted(set(points.variables["tokens"])) == pytest.approx(TOKENS)


def test_another_way_to_count_flops_is_no_wrong_unit() -> None:
    """Forward only (2ND), with attention, without the embedding: C / 6ND between 0.2 and 5 is nobody's mistake."""
    for share in (1 / 3, 0.6, 2.5):
        rows = [{**row, "C": share * 6 * row["N"] * row["D"]} for row in grid()]
        assert read_points(rows).variables["compute"].max() == pytest.approx(share * 6 * 3e8 * 1e10)


@pytest.mark.parametrize(
    "value, factor",
    [("M", 1e6), ("millions", 1e6), ("2^20", 2**20), (1e6, 1e6), ("1e6", 1e6), ("PF-days", 8.64e19), ("B", 1e9)],
)
def test_units_that_are_declared(value: Any, factor: float) -> None:
    assert unit(value, "params") == pytest.approx(factor)


@pytest.mark.parametrize("kind", ["nats", "bits", "bits_per_byte", "perplexity"])
def test_losses_go_to_nats_and_back(kind: str) -> None:
    loss = np.array([2.0, 3.5])
    assert from_nats(to_nats(loss, kind), kind) == pytest.approx(loss)
    assert to_nats(float(np.e), "perplexity") == pytest.approx(1) and to_nats(1.0, "bits") == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    "name, kind", [("val_ppl", "perplexity"), ("Validation Perplexity", "perplexity"), ("loss (bits)", "bits"), ("val_bpb", "bits_per_byte"), ("bits per byte", "bits_per_byte"), ("loss", None), ("loss_nats", "nats")],
)  # fmt: skip
def test_the_unit_of_a_loss_is_in_its_name(name: str, kind: str | None) -> None:
    assert loss_unit_named(name) == kind


@pytest.mark.parametrize(
    "name, convert", [("perplexity", np.exp), ("loss_bits", lambda x: x / np.log(2)), ("val_bpb", lambda x: x)]
)
def test_points_are_in_nats_whatever_the_table_holds(name: str, convert: Any) -> None:
    rows = [{"params": r["params"], name: float(convert(r["loss"]))} for r in ladder()]
    points = read_points(rows)
    assert points.loss == pytest.approx([r["loss"] for r in ladder()])
    assert from_nats(points.loss, points.loss_unit) == pytest.approx([r[name] for r in rows])


def test_a_perplexity_called_loss_is_refused_and_can_be_declared() -> None:
    rows = [{**r, "loss": float(np.exp(r["loss"]))} for r in ladder()]
    with pytest.raises(InputError, match='loss_unit="perplexity"'):
        read_points(rows)
    assert read_points(rows, loss_unit="perplexity").loss == pytest.approx([r["loss"] for r in ladder()])
    assert read_points(rows, loss_unit="nats").loss.min() > 11


def test_a_loss_above_that_of_a_guess_is_refused() -> None:
    """Over 65 characters a guess has ln 65 = 4.17 nats: perplexities of 6 to 9 are no losses."""
    rows = [{"width": w, "vocab_size": 65, "loss": 9 - i / 2} for i, w in enumerate(WIDTHS)]
    with pytest.raises(InputError, match=r"a guess has 4.17 nats.*perplexity"):
        read_points(rows)


@pytest.mark.parametrize("which", [(1,), (0, 3), (1, 4, 7), (0, 1, 2, 3, 4), (9, 10, 11)])
@pytest.mark.parametrize("kind", ["bits", "perplexity"])
def test_two_kinds_of_loss_in_one_column_are_told_with_their_rows(kind: str, which: tuple[int, ...]) -> None:
    rows = changed(grid(), which, loss=lambda v: float(np.exp(v)) if kind == "perplexity" else v / np.log(2))
    with pytest.raises(InputError) as error:
        read_points(rows)
    named = ("row " if len(which) == 1 else "rows ") + ", ".join(str(i + 1) for i in which[:4])
    assert named in str(error.value) and "\n" not in str(error.value)
    assert ("bits" if kind == "bits" else "perplexities") in str(error.value)
    if kind == "bits":
        assert len(read_points(rows, loss_unit="nats")) == len(rows)


def test_noisy_tables_are_not_taken_for_mixed_ones() -> None:
    """200 random sets of one to two variables, with noise up to 10 % and here and there an outlier of 15 or 30 %."""
    random = np.random.default_rng(0)
    for _ in range(200):
        n = int(random.integers(6, 50))
        size, tokens = 10 ** random.uniform(7, 10, n), 10 ** random.uniform(9, 12, n)
        loss = (
            random.uniform(0.5, 2.5) + random.uniform(100, 800) / size**0.34 + random.uniform(100, 2000) / tokens**0.28
        )
        loss *= np.exp(random.choice([0.002, 0.01, 0.03, 0.1]) * random.standard_normal(n))
        loss[random.integers(n)] *= random.choice([1.0, 1.15, 1.3])
        read_points({"N": size, "D": tokens, "loss": loss} if random.random() < 0.7 else {"N": size, "loss": loss})
