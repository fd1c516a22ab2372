"""The experiments that measure sizes: the published picture comes out, its exit code follows from it, and it can be wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mutransfer.experiments import EXPERIMENTS, SIZES, checks, depth_check, linearisation, sparsity, spectral_checks
from mutransfer.experiments.checks import Case, Checks
from mutransfer.experiments.lines import draw_lines, signed, slope
from mutransfer.sweep import Options

TINY = {"head_size": 8, "context": 16, "init_std": 0.1}
WIDTH, DEPTH, BARE = (
    replace(one, sizes=sizes, model={**one.model, **TINY, "width" if one.axis == "depth" else "depth": fixed}, batch=4, steps=3, seeds=1)
    for one, sizes, fixed in zip(spectral_checks.config("small"), ((16, 32, 64), (2, 4, 8), (2, 4, 8)), (2, 16, 16), strict=True)
)  # fmt: skip


def run(out: Path, *every: Checks) -> dict:
    return checks.run("tiny", "tiny checks", lambda size: every, "nothing", "small", out, Options())


def test_with_a_plan_the_checks_pass_and_without_they_fail(tmp_path: Path) -> None:
    outcome = run(tmp_path / "out", WIDTH, BARE)
    verdicts = [[case["verdict"] for case in one["cases"]] for one in outcome["checks"]]
    assert verdicts == [["FAIL", "PASS"]] * 2 and outcome["exit_code"] == 0
    streams = [[case["panels"][0]["last"] for case in one["cases"]] for one in outcome["checks"]]
    for grows, stays in streams:
        assert grows > 0.3 and abs(stays) < 0.25
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"experiment.html", "experiment.json", "checks-1.png", "checks-2.png"}
    assert json.loads((tmp_path / "out" / "experiment.json").read_text(encoding="utf-8"))["words"] == outcome["words"]
    page = (tmp_path / "out" / "experiment.html").read_text(encoding="utf-8")
    assert "Over depth, no norm" in page and str(tmp_path) not in page and page.count("data:image/png") == 6


def test_a_variant_that_gets_another_verdict_is_the_exit_code(tmp_path: Path) -> None:
    hopeful = replace(DEPTH, sizes=(2, 4, 8), cases=(Case("SP", "sp", "PASS"),))
    outcome = run(tmp_path, hopeful)
    assert outcome["exit_code"] == 1 and "FAIL (should be PASS)" in outcome["words"]
    few = replace(DEPTH, sizes=(2, 4), cases=(Case("CompleteP", "completep", "PASS"),))
    assert run(tmp_path, few)["exit_code"] == 3


def test_the_final_residual_grows_without_a_depth_rule(tmp_path: Path) -> None:
    (one,) = depth_check.config("small")
    tiny = replace(one, sizes=(2, 4, 8), model={**one.model, **TINY, "width": 16}, batch=2, steps=3, seeds=1)
    outcome = run(tmp_path, tiny)
    without, half, whole = (case["panels"][0]["last"] for case in outcome["checks"][0]["cases"])
    assert outcome["exit_code"] == 0 and without > 0.5 and abs(half) < 0.25 and abs(whole) < 0.25


@pytest.mark.parametrize("size", SIZES)
def test_configs_are_plain_data_that_start_at_the_published_base(size: str) -> None:
    for config in (spectral_checks.config, depth_check.config):
        for one in config(size):
            json.dumps(one.to_dict(), allow_nan=False)
            assert one.axis not in one.model and list(one.sizes) == sorted(one.sizes)
            assert {case.expected for case in one.cases} == {"PASS", "FAIL"}
    assert {"spectral-checks", "depth-check", "sparsity", "linearisation"} <= set(EXPERIMENTS)


TOY = replace(linearisation.config("small"), depths=(2, 16), width=32, batch=16, seeds=2)


def test_a_block_is_lazy_at_depth_only_under_the_square_root() -> None:
    at = {r: [linearisation.distance(d, r, 1, TOY) for d in TOY.depths] for r in ("depth-mup", "completep")}
    assert at["depth-mup"][0] == at["completep"][0]  # the base is the same net
    assert slope((TOY.depths, at["depth-mup"])) == pytest.approx(-0.5, abs=0.15)
    assert slope((TOY.depths, at["completep"])) == pytest.approx(0, abs=0.15)


def test_the_distance_is_what_the_second_order_leaves() -> None:
    """It is proportional to the step, and the caller's random stream is not touched."""
    state = torch.random.get_rng_state()
    one, two = (linearisation.distance(2, "completep", 0, replace(TOY, lr=lr)) for lr in (1e-5, 2e-5))
    assert two == pytest.approx(2 * one, rel=0.01) and one < 1e-3
    assert torch.equal(state, torch.random.get_rng_state())


def test_linearisation_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearisation, "config", lambda size: TOY)
    outcome = linearisation.run("small", tmp_path, Options())
    assert outcome["exit_code"] == 0 and len(outcome["rows"]) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"experiment.html", "experiment.json", "distance.png"}
    monkeypatch.setattr(linearisation, "EXPECTED", {"α = 1": ("completep", -0.5)})
    assert linearisation.run("small", tmp_path, Options())["exit_code"] == 1


SPARSE = replace(
    sparsity.config("small"), width=64, base=16, head_size=8, context=16, batch=4, seeds=1, steps=3, densities=(1.0, 0.25),
    init_std=0.1,
)  # fmt: skip


def test_only_with_a_density_rule_do_sparse_branches_keep_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsity, "config", lambda size: SPARSE)
    monkeypatch.setattr(sparsity, "FLAT", 0.3)  # one draw of a narrow net
    outcome = sparsity.run("small", tmp_path, Options())
    assert outcome["exit_code"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"experiment.html", "experiment.json", "density.png"}
    rows = outcome["rows"]
    dense = {v: sparsity.line(rows, v, "MLP", 3)[1][-1] for v in sparsity.VARIANTS}
    assert (
        dense["μP"] == pytest.approx(dense["SμPar"], rel=0.02) != dense["SP"]
    )  # without a mask: but for its 1/d in attention
    slopes = {(r["variant"], r["panel"], r["step"]): r["slope"] for r in outcome["slopes"]}
    assert slopes["μP", "MLP", 0] == pytest.approx(1, abs=0.3)  # √ρ of each of the branch's two matrices
    assert not sparsity.holds({**slopes, ("SμPar", "MLP", 0): 0.4}, 3)
    assert not sparsity.holds({**slopes, ("μP", "MLP", 3): 0.5}, 3)


def test_slopes_are_exponents_of_what_is_there() -> None:
    sizes = (1, 2, 4, 8)
    assert slope((sizes, [3 * x**-0.5 for x in sizes])) == pytest.approx(-0.5)
    assert (
        slope((sizes, [1, 4, math.nan, 64])) == pytest.approx(2) and slope((sizes, [1, 0, math.inf, math.nan])) is None
    )
    assert [signed(v) for v in (-0.001, 0.5, None)] == ["0.00", "+0.50", "–"]


def test_a_panel_without_a_single_value_can_be_drawn() -> None:
    assert draw_lines({"a": {"x": ((1, 2), (math.nan, 0.0))}}, "depth", "size").startswith(b"\x89PNG")
