"""Over width × depth: a plan of both passes, each missing half fails, and a rule that is right on two edges fails inside."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch

import mutransfer as mt
from mutransfer.check import coord_check, feed, grid, points, record
from mutransfer.check.grid_report import GridReport
from mutransfer.check.lines import judge_grid
from mutransfer.cli import main
from mutransfer.errors import InputError
from mutransfer.models import gpt_factory, gpt_loss, mlp_factory
from tests.check import zoo

SIZES = {"width": [16, 32, 64], "depth": [2, 4, 8]}
BASE = {"width": 16, "depth": 2}
RATE = {"adamw": 2**-7, "sgd": 0.3, "muon-kimi": 2**-6}


def text(rows=2, length=8):
    g = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(32, (2, rows, length), generator=g)) for _ in range(2)]


def planned(optimizer="adamw", recipe="completep", change=None, **options):
    factory = gpt_factory(**{"vocab_size": 32, "context": 8, "head_size": 8, "init_std": 0.08, **options})

    def build(size):
        plan = mt.plan(factory, base=BASE, target=size, optimizer=optimizer, recipe=recipe)
        model = plan.initialize(factory(**size))
        made = plan.optimizer(model, lr=RATE[optimizer])
        if change is not None:
            change(model, made, size["width"] / 16, size["depth"] / 2)
        return model, made

    return build


def check(build, sizes=SIZES, **options):
    return coord_check(build, sizes, text(), gpt_loss, **{"steps": 2, "seeds": 2, **options})


@pytest.fixture(scope="module")
def right():
    """The records of a right model, to be spoilt by arithmetic: a rate is a factor of every update, an init of the weight."""
    built = points.read_grid(SIZES, None)
    protocol = record.Protocol(planned(), feed.materialise(text(), 2), gpt_loss, 2, None, None, None, False)
    return built, *grid.measure(built, protocol, [0, 1], None)


def spoilt(right, pattern, kinds, factor):
    """The same runs with some tensors' recorded sizes multiplied by a factor of the ratios of width and depth."""
    built, cells, degrees = right
    found = {}
    for place, cell in cells.items():
        n, depth = (values[k] / values[0] for values, k in zip(built.values, place, strict=True))
        hit = {k: v * factor(n, depth) for k, v in cell.data.items() if k[0] in kinds and re.search(pattern, k[1])}
        found[place] = dataclasses.replace(cell, data={**cell.data, **hit})
    return judge_grid(built, found, degrees)


def test_a_plan_of_width_and_depth_passes_and_every_point_ran_once_per_seed(right):
    report = judge_grid(*right)
    assert report.ok and not report.culprits, report.words()
    assert {(line.axis, line.value) for line in report.lines} == {
        *(("width", depth) for depth in SIZES["depth"]),
        *(("depth", width) for width in SIZES["width"]),
    }
    losses = [row for row in report.records if row["kind"] == "loss" and row["step"] == 0]
    assert len(losses) == 9 * 2 and {(row["width"], row["depth"]) for row in losses} == {
        (width, depth) for width in SIZES["width"] for depth in SIZES["depth"]
    }
    branch = next(row for row in report.table if (row["kind"], row["name"]) == ("contribution", "blocks.*"))
    assert abs(branch["width"]) < 0.2 and abs(branch["depth"] + 1) < 0.2 and abs(branch["interaction"]) < 0.1
    assert np.shape(branch["values"]) == (3, 3)


def log2(x):
    return math.log2(x)


HIDDEN = r"blocks\.\d+\..*(proj|up|down)\.weight"


@pytest.mark.parametrize(
    ("pattern", "kinds", "factor", "first", "axis", "where"),
    [  # the corner alone; an exponent that changes, right in the middle; a single inner point; jumps of a minimum
        (HIDDEN, ("update",), lambda n, d: n ** (0.25 * log2(d)), "blocks.0.attn.q_proj.weight", "width", "8 (not at 2"),
        (HIDDEN, ("update",), lambda n, d: n ** (0.15 * (log2(d) - 1)), "blocks.0.attn.q_proj.weight", "", ""),
        (r"mlp\.up", ("update",), lambda n, d: 3.0 if n == d == 2 else 1.0, "blocks.0.mlp.up.weight", "width", "at width 32, depth 4"),
        (r"head\.weight", ("weight", "product"), lambda n, d: n ** (0.2 * (log2(d) - 1)), "head.weight", "width", "between depth 2 and 8"),
    ],
    ids=["corner", "middle", "point", "init"],
)  # fmt: skip
def test_a_rule_that_is_no_product_fails(right, pattern, kinds, factor, first, axis, where):
    report = spoilt(right, pattern, kinds, factor)
    assert report.verdict == "FAIL" and report.culprits[0] == first, report.words()
    found = [f for f in report.findings if f.severity == "fail" and f.name == first]
    assert any(axis in f.axis and where in f.where for f in found), report.words()
    assert all(re.search(pattern, name) for name in report.culprits)


def test_the_gauge_is_no_interaction(right):
    """A forward multiplier of both sizes: init and step smaller by it (p = 0), the gradient larger. The path is the same."""
    built, cells, degrees = right
    found = {}
    for place, cell in cells.items():
        t = 2.0 ** (place[0] * place[1])
        powers = {"weight": -1, "update": -1, "gradient": 1, "gradient norm": 1, "product": -1}
        data = {k: v * t ** powers.get(k[0], 0) if "attn.out_proj" in k[1] else v for k, v in cell.data.items()}
        found[place] = dataclasses.replace(cell, data=data)
    report = judge_grid(built, found, degrees)
    assert not any("function of each size" in f.rule for f in report.findings), report.words()


def test_one_noisy_line_of_six_is_explained(right):
    """A size of an activation that grows at one depth alone, at the rate of a finding, is a note; at every depth it stands."""
    built, cells, degrees = right

    def grown(depths):
        return {
            p: dataclasses.replace(c, data={
                k: v * 2.0 ** (0.6 * p[0]) if k[0] == "change" and k[1] == "blocks.1.mlp.down" and p[1] in depths else v
                for k, v in c.data.items()
            })
            for p, c in cells.items()
        }  # fmt: skip

    report = judge_grid(built, grown({1}), degrees)
    alone = next(line for line in report.lines if (line.axis, line.value) == ("width", 4))
    assert alone.report.verdict == "FAIL" and alone.verdict == "PASS" and report.ok, report.words()
    assert any("noise" in f.advice for f in report.findings)
    assert judge_grid(built, grown({0, 1, 2}), degrees).verdict == "FAIL"


@pytest.mark.parametrize(("optimizer", "recipe", "norm", "axis"), [
    ("adamw", "sp", "layernorm", "width"), ("sgd", "mup", "none", "depth"),
])  # fmt: skip
def test_half_a_plan_fails(optimizer, recipe, norm, axis):
    report = check(planned(optimizer, recipe, norm=norm), seeds=1)
    assert report.verdict == "FAIL", report.words()
    first = next(f for f in report.findings if f.severity == "fail")
    assert first.axis == axis and first.where.startswith(("at every", "in every block at every")), report.words()
    if axis == "depth":
        assert all(line.verdict == "PASS" for line in report.lines if line.axis == "width"), report.words()
        assert re.match(r"blocks\.0\.(attn\.out_proj|mlp\.down)\.weight", report.culprits[0])


def test_muon_passes_over_a_grid_whose_inside_is_left_out():
    sizes = [dict(width=w, depth=d) for w in SIZES["width"] for d in SIZES["depth"] if (w, d) != (32, 4)]
    report = mt.testing.assert_scale_invariant(planned("muon-kimi"), sizes, text(), gpt_loss, steps=2, seeds=1)
    assert isinstance(report, GridReport) and len(report.lines) == 4 and report.axis == "width × depth"


@pytest.mark.parametrize(("sizes", "why"), [
    ({"width": [16, 32, 64], "depth": [1, 2]}, "only 2 sizes of depth: add depth 4"),
    ({"width": [16, 64], "depth": [1, 4]}, "only 2 sizes of width: add width 32"),
    ({"width": [16, 24, 32], "depth": [1, 2, 4]}, "width spans less than a factor 4: add width 64"),
    ([dict(width=w, depth=d) for w in (16, 32, 64) for d in (1, 2, 4) if (w, d) != (64, 4)], "add width 64, depth 4"),
])  # fmt: skip
def test_too_little_is_inconclusive_and_says_what_to_add(sizes, why):
    factory = mlp_factory(inputs=20, outputs=5, residual=True, norm="layernorm")
    batch = (torch.randn(8, 20, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5)

    def build(size):
        plan = mt.plan(factory, base=dict(width=16, depth=1), target=size, optimizer="adamw", recipe="completep")
        model = plan.initialize(factory(**size))
        return model, plan.optimizer(model, lr=2**-7)

    loss = lambda model, one: zoo.cross_entropy(model(one[0]), one[1])  # noqa: E731
    report = coord_check(build, sizes, batch, loss, steps=1, seeds=1)
    assert report.verdict == "INCONCLUSIVE" and why in report.why, report.words()


BAD = [
    ({"width": [16, 32, 64]}, {}, "a grid has two axes"),
    ({"width": [16, 32], "depth": [1, 2], "heads": [1, 2]}, {}, "a grid has two axes"),
    ({"width": [16, 32, 64], "depth": [2]}, {}, "depth does not vary"),
    ({"width": [16, 32, 32], "depth": [1, 2]}, {}, "same width is listed twice"),
    ({"width": [16, 32.5], "depth": [1, 2]}, {}, "32.5 is no integer"),
    ({"width": [16, -32], "depth": [1, 2]}, {}, "positive integer"),
    ({"width": 16, "depth": [1, 2]}, {}, "list the sizes of width"),
    ({3: [16, 32], "depth": [1, 2]}, {}, "named by a word"),
    ({"width": [16, 32], "depth": [1, 2]}, {"axis": "depth"}, "leave axis out"),
    ([dict(width=w, depth=d) for w, d in ((16, 2), (16, 4), (32, 2), (32, 2), (32, 4))], {}, "listed twice"),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "options", "words"), BAD)
def test_bad_grids_are_one_line(sizes, options, words):
    def never(size):
        raise AssertionError("nothing may be built")

    with pytest.raises(InputError, match=re.escape(words)) as error:
        coord_check(never, sizes, text(), gpt_loss, **options)
    assert "\n" not in str(error.value)


def test_an_axis_without_effect_is_refused_before_all_is_run():
    calls = []

    def build(size):
        calls.append(size)
        model = zoo.MLP(size["width"])
        return model, torch.optim.Adam(model.parameters(), lr=1e-3)

    batch = (torch.ones(4, 20), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match="no tensor's shape depends on depth"):
        coord_check(build, SIZES, batch, lambda m, b: zoo.cross_entropy(m(b[0]), b[1]))
    assert len(calls) < 4


def test_lists_of_one_axis_are_no_grid():
    assert points.read_grid([dict(width=16, heads=2), dict(width=32, heads=2), dict(width=64, heads=4)], None) is None
    assert points.read_grid([dict(width=16, depth=2), dict(width=32, depth=4)], None) is None
    assert points.read_grid([16, 32, 64], None) is None
    named = points.read_grid([dict(n_layer=d, n_embd=w, n_head=w // 8) for d in (2, 4, 8) for w in (16, 32, 64)], None)
    assert named is not None and named.axes == ("n_embd", "n_layer") and len(named.points) == 9


def test_the_command_writes_page_picture_and_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "check mlp --sizes 8 16 32 --depths 1 2 4 --recipe completep --fixed residual=true norm=layernorm --steps 1 --seeds 2"
    assert main([*line.split(), "--lr", "0.01", "--out", "report"]) == 0, capsys.readouterr().out
    assert "width at depth 1 ✓" in capsys.readouterr().out
    written = json.loads((tmp_path / "report" / "check.json").read_text())
    assert written["values"] == {"width": [8, 16, 32], "depth": [1, 2, 4]} and len(written["lines"]) == 6
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Every line of the grid" in page and "Joint fit" in page
    assert (tmp_path / "report" / "check.png").stat().st_size > 20_000


@pytest.mark.parametrize(("options", "words"), [
    ("--depths 2 4 8 --axis depth", "leave --axis out"), ("--depths 2", "at least two different sizes"),
    ("--depths 2 2 4", "at least two different sizes"), ("--depths 2 4 8 --fixed depth=3", "depth is what --depths gives"),
])  # fmt: skip
def test_bad_commands_are_one_line(options, words, capsys):
    assert main(["check", "gpt", "--sizes", "16", "32", "64", *options.split()]) == 2
    assert words in (err := capsys.readouterr().err) and err.strip().count("\n") == 0
    if "fixed" in options:
        assert main(["check", "resnet", "--sizes", "16", "32", "64", "--depths", "2", "4", "8"]) == 2
        assert "resnet has no depth" in capsys.readouterr().err
