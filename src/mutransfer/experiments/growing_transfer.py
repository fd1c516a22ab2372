"""Do the hyperparameters of growing transfer? Best learning rate and best noise of grown models, by width (μpscaling)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.experiments.experiment import Experiment
from mutransfer.experiments.grid import Grid, Variant, powers
from mutransfer.experiments.transfer import Outcome, Picture, judge, optima_table, summary, words
from mutransfer.rows.columns import knob

if TYPE_CHECKING:
    from mutransfer.sweep import Options

GROWN: dict[str, Any] = {"grow_from.width": "/2"}
SEEDS = (0, 1, 2, 3, 4)


def config(size: str) -> dict[str, Grid]:
    """Each model over its learning rate at one noise, SP and μP, and over noise at one rate; every run grown from half its width.

    Paper: Covertype and FineWeb-Edu. Small: the digits as a table and the text of every Python.
    """
    if size == "paper":
        mlp = {
            "kind": "mlp", "depth": 3, "data": "covertype", "batch": 256, "weight_decay": 0.0, "clip": None, "base.width": 64,
            "steps": 2000, "warmup": 200, "grow_steps": 2000, "grow_lr": 2.0**-9, **GROWN,
        }  # fmt: skip
        gpt = {
            "kind": "gpt", "depth": 8, "head_size": 64, "context": 1024, "data": "fineweb-edu", "batch": 32, "base.width": 64,
            "steps": 5000, "warmup": 500, "grow_steps": 5000, "grow_lr": 2.0**-8, **GROWN,
        }  # fmt: skip
        return {
            **_pair(
                "MLP, Covertype", mlp, (128, 256, 512, 1024), powers(-13, -5), powers(-9, 2), 2.0**-9, 0.1, "val_loss"
            ),
            **_pair(
                "GPT, FineWeb-Edu",
                gpt,
                (128, 256, 512, 1024),
                powers(-12, -5),
                powers(-9, 2),
                2.0**-8,
                0.1,
                "train_loss",
            ),
        }
    common = {"device": "cpu", "log_every": 50, "val_batches": 0, "schedule": "cosine", **GROWN}
    mlp = {
        **common, "kind": "mlp", "depth": 2, "norm": "layernorm", "data": "digits", "batch": 16, "weight_decay": 0.0, "base.width": 16,
        "steps": 60, "warmup": 6, "grow_steps": 30, "grow_warmup": 3, "grow_lr": 2.0**-5,
    }  # fmt: skip
    gpt = {
        **common, "kind": "gpt", "depth": 2, "head_size": 8, "context": 32, "init_std": 0.08, "data": "topics", "batch": 16, "base.width": 8,
        "weight_decay": 0.1, "steps": 150, "warmup": 15, "grow_steps": 200, "grow_warmup": 20, "grow_lr": 2.0**-5,
    }  # fmt: skip
    noises = (0.0, *(2.0**x for x in (-9, -6, -4, -3, -2, -1, 0, 1)))
    return {
        **_pair("MLP, digits", mlp, (32, 64, 128, 256), powers(-9, -2), noises, 2.0**-5, 0.25, "mean_loss"),
        **_pair("GPT, topics", gpt, (16, 32, 64), powers(-7, -2), (0.0, *noises[2:]), 2.0**-5, 0.25, "train_loss"),
    }


def _pair(
    name: str, run: Mapping[str, Any], sizes: tuple[int, ...], lrs: tuple[float, ...], noises: tuple[float, ...], lr: float, noise: float, metric: str
) -> dict[str, Grid]:  # fmt: skip
    variants = (Variant("SP", {"recipe": "sp"}, lrs), Variant("μP", {"recipe": "mup"}, lrs))
    by_lr = Grid({**run, "grow_noise": noise}, sizes, SEEDS, variants, ("μP",), metrics=(metric,))
    only = (Variant("μP", {"recipe": "mup"}, noises),)
    by_noise = Grid({**run, "lr": lr}, sizes, SEEDS, only, ("μP",), metrics=(metric,), knob="grow_noise")
    return {f"{name}: learning rate": by_lr, f"{name}: noise": by_noise}


def run(config: Callable[[str], dict[str, Grid]], size: str, out: Path, options: Options) -> dict[str, Any]:
    """Make what is missing of the grids whose data is there; `experiment.html`, `experiment.json` and pictures in `out`.

    The exit code is that of the worst learning-rate grid; the verdicts on noise are told. Raises InputError when no grid has its data.
    """
    from mutransfer.commands.output import finite
    from mutransfer.errors import InputError
    from mutransfer.files import write_whole
    from mutransfer.sweep import Wanted, sweep

    wanted: dict[str, dict[str, list[Wanted]]] = {}
    refused: dict[str, str] = {}
    grids = config(size)
    for name, grid in grids.items():
        try:
            wanted[name] = {v.name: [Wanted.of(c) for c in grid.configs(v)] for v in grid.variants}
        except InputError as error:
            refused[name] = str(error)
    if not wanted:
        raise InputError(next(iter(refused.values())))
    runs = {run.key: run for variants in wanted.values() for some in variants.values() for run in some}
    records = {record["key"]: record for record in sweep(list(runs.values()), out, options, label=TRANSFER.name)}
    found = {
        name: judge(grids[name], {v: [records[run.key] for run in some] for v, some in variants.items()})
        for name, variants in wanted.items()
    }
    codes = [one.exit_code for one in found.values() if one.grid.knob == "lr"]
    pictures = draw(found)
    for file, data, _ in pictures:
        write_whole(out / f"{file}.png", data)
    said = [f"{name}: {line}" for name, one in found.items() for line in words(one).splitlines()]
    outcome = {
        "exit_code": max(codes or [3], key=(0, 3, 1).index), "experiment": TRANSFER.name, "size": size, "refused": refused,
        "words": "\n".join([*said, *(f"{name}: not run: {reason}" for name, reason in refused.items())]),
        "grids": {
            name: {"grid": one.grid.to_dict(), "verdicts": {v: made.to_dict() for v, made in one.main.items()}} for name, one in found.items()
        },
    }  # fmt: skip
    write_whole(out / "experiment.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, size, found, pictures)
    return outcome


def draw(found: Mapping[str, Outcome]) -> list[Picture]:
    """Per grid loss against the hyperparameter, a panel per variant."""
    from mutransfer.verdict.figure import draw_curves

    pictures = []
    for name, one in found.items():
        file = name.lower().replace(":", "").replace(",", "").replace(" ", "-")
        titled = {f"{name.partition(':')[0]}, {variant}": verdict for variant, verdict in one.main.items()}
        if titled:
            text = f"Loss against log2 {knob(one.grid.knob)}, a curve per {one.grid.size}"
            pictures.append((file, draw_curves(titled), text))
    return pictures


def _page(out: Path, size: str, found: Mapping[str, Outcome], pictures: list[Picture]) -> None:
    from mutransfer.commands.output import command_line
    from mutransfer.report import Provenance, Section, Table, write_page

    drawn = {file: (data, text) for file, data, text in pictures}
    sections = []
    for name, one in found.items():
        grid, metric = one.grid, one.grid.metrics[0]
        file = name.lower().replace(":", "").replace(",", "").replace(" ", "-")
        columns = (
            "variant",
            "verdict",
            "octaves per doubling",
            f"cost at {grid.size} {grid.sizes[-1]}",
            "gain with size",
        )
        sections.append(Section(
            name, verdict={0: "HOLDS", 1: "DRIFTS", 3: "INCONCLUSIVE"}[one.exit_code],
            paragraphs=(f"Every model is grown from half its {grid.size}. The verdict is that of: {', '.join(grid.judged)}.",),
            pictures=(drawn[file],) if file in drawn else (),
            tables=(Table(columns, tuple(summary(one, metric)), f"By {metric}"), optima_table(one, metric)),
            fixed="\n\n".join([f"{v}: {made.words()}" for v, made in one.main.items()] + [json.dumps(grid.to_dict(), indent=1, ensure_ascii=False)]),
            folded="verdicts in words, and every field of the grid",
        ))  # fmt: skip
    grids = [one.grid for one in found.values()]
    data = ", ".join(dict.fromkeys(str(grid.run["data"]) for grid in grids))
    facts = Provenance.now(command_line(), data=data, seeds=", ".join(map(str, grids[0].seeds)))
    write_page(out / "experiment.html", f"Hyperparameters of grown models ({size})", sections, facts)


TRANSFER = Experiment(
    "grow-transfer",
    "best learning rate and best noise of grown models by width, SP and μP",
    "μpscaling",
    partial(run, config),
)
