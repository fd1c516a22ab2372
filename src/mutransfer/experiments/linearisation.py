"""How lazily a block learns: the distance of its one-step change from its linearisation, by depth, for branches × L^-½ and × 1/L.

A step moves the weights of a branch by `‖ΔW‖/‖W‖ ~ L^(α−1)`. What a branch of two matrices gains beyond its linearisation in them is of
second order in that: relative to the first order it falls like `L^-½` for α = ½ (lazy: a deep net learns as if its branches were
linear in their weights) and stays for α = 1 (CompleteP, 2505.01618).
"""

from __future__ import annotations

import json
import statistics
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.experiments.experiment import Experiment
from mutransfer.experiments.lines import draw_lines, signed, slope

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mutransfer.sweep import Options

EXPECTED = {"α = ½": ("depth-mup", -0.5), "α = 1 (CompleteP)": ("completep", 0.0)}
"""Variant → its recipe and the exponent of the distance in depth."""
CLOSE = 0.15
"""How far a measured exponent may be from the expected one."""


@dataclass(frozen=True)
class Config:
    """A residual MLP with LayerNorm, two matrices a branch, random inputs and labels, one step of AdamW, in float64."""

    depths: tuple[int, ...]
    width: int
    seeds: int
    inputs: int = 16
    classes: int = 10
    batch: int = 32
    lr: float = 1e-2
    activation: str = "gelu"


def config(size: str) -> Config:
    """Depth 2 … 64 at width 64; paper: 2 … 256 at width 256."""
    if size == "paper":
        return Config((2, 4, 8, 16, 32, 64, 128, 256), width=256, seeds=5)
    return Config((2, 4, 8, 16, 32, 64), width=64, seeds=3)


def distance(depth: int, recipe: str, seed: int, setting: Config) -> float:
    """Median over the blocks of `‖Δ − Δlin‖/‖Δlin‖` after one step of all weights.

    Δ is the change of a block's output on the input that it had before the step, Δlin the same to first order in its weights.
    """
    import torch
    import torch.nn.functional as F
    from torch.func import functional_call, jvp

    from mutransfer.build import plan
    from mutransfer.models import mlp_factory

    make = mlp_factory(
        inputs=setting.inputs, outputs=setting.classes, width=setting.width, activation=setting.activation, bias=False,
        norm="layernorm", residual=True, init="normal", init_std=setting.width**-0.5,
    )  # fmt: skip
    made = plan(make, base={"depth": setting.depths[0]}, target={"depth": depth}, recipe=recipe)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = made.initialize(make(depth=depth)).double()
    x = torch.randn(setting.batch, setting.inputs, generator=generator, dtype=torch.float64)
    labels = torch.randint(setting.classes, (setting.batch,), generator=generator)
    optimizer = made.optimizer(model, lr=setting.lr, weight_decay=0.0)
    blocks = list(model.get_submodule("blocks").children())
    seen: dict[nn.Module, Tensor] = {}
    handles = [b.register_forward_pre_hook(lambda block, args: seen.__setitem__(block, args[0].detach())) for b in blocks]  # fmt: skip
    F.cross_entropy(model(x), labels).backward()
    for handle in handles:
        handle.remove()
    before = [{name: p.detach().clone() for name, p in block.named_parameters()} for block in blocks]
    optimizer.step()
    distances = []
    for block, old in zip(blocks, before, strict=True):
        now = {name: p.detach() for name, p in block.named_parameters()}
        step = {name: now[name] - old[name] for name in old}

        def output(weights: dict[str, Tensor], block: nn.Module = block) -> Tensor:
            return functional_call(block, weights, (seen[block],))

        with warnings.catch_warnings():  # torch scripts its own decompositions when it first differentiates forwards
            warnings.simplefilter("ignore", DeprecationWarning)
            start, linear, *_ = jvp(output, (old,), (step,))
        distances.append(float((output(now) - start - linear).norm() / linear.norm()))
    return statistics.median(distances)


def run(size: str, out: Path, options: Options) -> dict[str, Any]:
    """`experiment.json`, `experiment.html` and `distance.png` in `out`. Exit code 0 when both exponents are as they should be."""
    from mutransfer.commands.output import Progress, finite
    from mutransfer.files import write_whole

    setting = config(size)
    rows: list[dict[str, Any]] = []
    with Progress("linearisation", float(len(EXPECTED) * setting.seeds * sum(setting.depths))) as progress:
        for name, (recipe, _) in EXPECTED.items():
            for depth in setting.depths:
                for seed in range(setting.seeds):
                    rows.append({"variant": name, "depth": depth, "seed": seed, "distance": distance(depth, recipe, seed, setting)})  # fmt: skip
                    progress.advance(float(depth), f"{name}, depth {depth}")
    lines = {name: _line(rows, name, setting) for name in EXPECTED}
    slopes = {name: slope(line) for name, line in lines.items()}
    held = all(b is not None and abs(b - EXPECTED[name][1]) <= CLOSE for name, b in slopes.items())
    outcome = {
        "exit_code": 0 if held else 1, "experiment": LINEARISATION.name, "size": size, "words": words(lines, slopes, setting),
        "slopes": slopes, "setting": asdict(setting), "rows": rows,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    picture = draw_lines({"median over blocks": lines}, "depth", "relative distance from the linearisation")
    write_whole(out / "distance.png", picture)
    write_whole(out / "experiment.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, size, held, lines, slopes, setting, picture)
    return outcome


def _line(rows: list[dict[str, Any]], name: str, setting: Config) -> tuple[tuple[int, ...], list[float]]:
    mine = [row for row in rows if row["variant"] == name]
    return setting.depths, [
        statistics.mean(row["distance"] for row in mine if row["depth"] == depth) for depth in setting.depths
    ]


def words(lines: dict[str, Any], slopes: dict[str, float | None], setting: Config) -> str:
    """Per variant: the distance at the smallest and the largest depth, and the exponent between them."""
    said = [
        f"relative distance of a one-step change from its linearisation, depth {setting.depths[0]} … {setting.depths[-1]}"
    ]
    for name, (_, values) in lines.items():
        said.append(f"{name:20}{values[0]:.4f} → {values[-1]:.4f}   depth^{signed(slopes[name])}, expected {EXPECTED[name][1]:+.1f}")  # fmt: skip
    return "\n".join(said)


def _page(
    out: Path, size: str, held: bool, lines: dict[str, Any], slopes: dict[str, float | None], setting: Config, picture: bytes
) -> None:  # fmt: skip
    from mutransfer.commands.output import command_line
    from mutransfer.report import Provenance, Section, Table, write_page

    columns = ("variant", *(f"depth {depth}" for depth in setting.depths), "exponent", "expected")
    table = Table(
        columns,
        tuple((name, *(f"{value:.4f}" for value in values), signed(slopes[name]), signed(EXPECTED[name][1])) for name, (_, values) in lines.items()),
        "Median over the blocks, mean over the seeds", frozenset(columns[1:]),
    )  # fmt: skip
    section = Section(
        "Does every layer keep learning features, however deep the net?",
        verdict="PASS" if held else "FAIL",
        paragraphs=(
            "One step of AdamW moves the weights of each block. The change of the block's output, on the input that it had, is compared with its "
            "linearisation in the weights. Where the distance falls with depth, deep nets learn lazily.",
            f"PASS: both exponents lie within {CLOSE:g} of the expected ones. Published (CompleteP): -0.46 for α = ½, -0.05 for α = 1.",
        ),
        pictures=((picture, "Relative distance from the linearisation against depth, one line per variant"),),
        tables=(table,),
        fixed=json.dumps(asdict(setting), indent=1), folded="the setting",
    )  # fmt: skip
    facts = Provenance.now(command_line(), data="random inputs and labels", seeds=", ".join(map(str, range(setting.seeds))))  # fmt: skip
    write_page(out / "experiment.html", f"Linearisation by depth ({size})", [section], facts)


LINEARISATION = Experiment(
    "linearisation",
    "distance of a one-step change from its linearisation by depth, branches × L^-½ and × 1/L",
    "completep",
    run,
)
