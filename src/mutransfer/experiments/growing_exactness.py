"""Is growing exact? The small model and the grown one on the same batches, in float64, for 200 steps (μpscaling).

Compared are every layer's output and gradient at the start, and after every step the model's output and every weight and buffer; from
them every layer's output follows. `python -m benchmarks.grow_exactness` measures more models and optimizers, and layer by layer at every step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.experiments.experiment import Experiment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mutransfer.sweep import Options

BEFORE = 20
"""Steps that the small model trains before it grows, so that the optimizer's state is not that of the start."""
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {"lr": 0.05}),
    "momentum": ("SGD", {"lr": 0.02, "momentum": 0.9}),
    "Nesterov": ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "SGD + L2": ("SGD", {"lr": 0.05, "weight_decay": 0.01}),
    "Adam": ("Adam", {"lr": 1e-3}),
    "Adam + L2": ("Adam", {"lr": 1e-3, "weight_decay": 0.01}),
    "AMSGrad": ("Adam", {"lr": 1e-3, "amsgrad": True}),
    "AdamW": ("AdamW", {"lr": 1e-3, "weight_decay": 0.1}),
}
"""The published eight."""


@dataclass(frozen=True)
class Case:
    """A kind of model with its sizes, the optimizers, and the largest relative difference that is rounding."""

    kind: str
    small: tuple[int, ...]
    big: tuple[int, ...]
    optimizers: tuple[str, ...]
    limit: float
    steps: int = 200


def config(size: str) -> tuple[Case, ...]:
    """MLP [50, 100, 200] → [500, 500, 800], ResNet-18 at .125 → .5 of its width, GPT 32 → 64; paper: GPT 256 → 512."""
    gpt = (32, 64) if size == "small" else (256, 512)
    return (
        Case("MLP", (50, 100, 200), (500, 500, 800), tuple(OPTIMIZERS), 1e-12),
        Case("ResNet-18", (8,), (32,), ("momentum", "AdamW") if size == "paper" else ("momentum",), 1e-12),
        Case("GPT", gpt[:1], gpt[1:], ("SGD", "AdamW"), 1e-10),
    )


def build(case: Case, sizes: Sequence[int]) -> nn.Module:
    """The case's model of these sizes, in float64."""
    from torch import nn

    from mutransfer.models import gpt_factory, resnet_factory

    if case.kind == "GPT":
        depth, head = (8, 64) if min(case.small) >= 256 else (2, 16)
        return gpt_factory(vocab_size=103, context=16, depth=depth, head_size=head, init_std=0.08)(
            width=sizes[0]
        ).double()
    if case.kind == "ResNet-18":
        return resnet_factory(channels=1, classes=10, blocks=(2, 2, 2, 2))(width=sizes[0]).double()
    widths = (64, *sizes)
    layers = [layer for a, b in zip(widths[:-1], sizes, strict=True) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10)).double()


def batches(case: Case, count: int) -> list[tuple[Tensor, Tensor]]:
    """Rows of the embedded data."""
    import torch

    from mutransfer.data import TextData, load

    if case.kind == "GPT":
        text = load("topics")
        assert isinstance(text, TextData)
        return [text.batch(step, 0, 8, 16, torch.device("cpu")) for step in range(count)]
    data = load("digits" if case.kind == "MLP" else "digits-images")
    found = []
    for step in range(count):
        x, y = data.batch(step, 0, 16, torch.device("cpu"))  # pyright: ignore[reportCallIssue, reportArgumentType]
        found.append((x.double(), y))
    return found


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    import torch.nn.functional as F

    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def measure(case: Case, optimizer: str, seed: int = 0) -> dict[str, Any]:
    """The largest differences of a model grown after `BEFORE` steps: at the start, and over all steps, and where."""
    import torch

    from mutransfer.growth.grow import grow

    name, settings = OPTIMIZERS[optimizer]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small, big = build(case, case.small), build(case, case.big)
    made = getattr(torch.optim, name)(small.parameters(), **settings)
    data = batches(case, BEFORE + case.steps)
    for batch in data[:BEFORE]:
        loss(small, batch).backward()
        made.step()
        made.zero_grad()
    found = grow(
        small, made, to=big, batches=data[BEFORE:], loss=loss, steps=case.steps, verify="report", show=False
    ).record.verification
    assert found is not None
    start = [check for check in found.checks if check.stage in ("weights", "layers", "loss", "gradients")]
    path = [check for check in found.checks if check.stage == "path"]
    worst = max(path or start, key=lambda check: check.error if math.isfinite(check.error) else math.inf)
    return {
        "kind": case.kind, "optimizer": optimizer, "start": max(check.error for check in start), "path": worst.error, "where": worst.name,
        "step": worst.step, "steps": found.steps, "ok": found.ok, "within": worst.error <= case.limit,
    }  # fmt: skip


def run(config: Callable[[str], tuple[Case, ...]], size: str, out: Path, options: Options) -> dict[str, Any]:
    """`experiment.json`, `experiment.html`, `exactness.png` in `out`. Exit code 0 when rounding explains every difference."""
    from mutransfer.commands.output import Progress, finite
    from mutransfer.files import write_whole

    cases, rows = config(size), []
    with Progress(EXACTNESS.name, float(sum(len(case.optimizers) for case in cases))) as progress:
        for case in cases:
            for optimizer in case.optimizers:
                rows.append(measure(case, optimizer))
                progress.advance(1.0, f"{case.kind}, {optimizer}")
    held = all(row["ok"] for row in rows)
    outcome = {
        "exit_code": 0 if held else 1, "words": words(cases, rows), "experiment": EXACTNESS.name, "size": size,
        "cases": [asdict(case) for case in cases], "rows": rows,
    }  # fmt: skip
    picture = draw(cases, rows)
    write_whole(out / "exactness.png", picture)
    write_whole(out / "experiment.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, size, held, cases, rows, picture)
    return outcome


def table(cases: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Model, sizes, optimizer, difference at the start, over the path, where, verdict."""
    sizes = {case.kind: f"{list(case.small)} → {list(case.big)}" for case in cases}
    limits = {case.kind: case.limit for case in cases}
    return [
        (
            row["kind"], sizes[row["kind"]], row["optimizer"], f"{row['start']:.1e}", f"{row['path']:.1e}", f"{row['where']}, step {row['step']}",
            f"within {limits[row['kind']]:.0e}" if row["within"] else "rounding" if row["ok"] else "DEPARTS",
        )
        for row in rows
    ]  # fmt: skip


def words(cases: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per model and optimizer."""
    lines = [
        f"largest relative difference, float64, at the start → after any of {max(row['steps'] for row in rows)} steps"
    ]
    lines += [
        f"{kind} {sizes}, {name}: {a} → {b} ({where}): {said}"
        for kind, sizes, name, a, b, where, said in table(cases, rows)
    ]
    return "\n".join(lines)


def draw(cases: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: a bar per model and optimizer, the largest difference over the path, the limit of each model as a line."""
    import io

    from matplotlib.figure import Figure

    from mutransfer.verdict.figure import LINES

    figure = Figure(figsize=(8.0, 0.9 + 0.33 * len(rows)), layout="constrained")
    axes = figure.subplots()
    kinds = [case.kind for case in cases]
    for i, row in enumerate(rows):
        colour = LINES[kinds.index(row["kind"])]
        axes.plot([max(row["start"], 1e-17), max(row["path"], 1e-17)], [i, i], color=colour, lw=1.2, alpha=0.5)
        axes.plot(max(row["start"], 1e-17), i, "|", color=colour, ms=9, mew=2)
        axes.plot(max(row["path"], 1e-17), i, "o", color=colour, mfc=colour if row["ok"] else "white")
        limit = cases[kinds.index(row["kind"])].limit
        axes.plot([limit, limit], [i - 0.5, i + 0.5], color="0.4", lw=1.2, ls="--")
    axes.set_yticks(range(len(rows)), [f"{row['kind']}, {row['optimizer']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1e-17, max(1e-8, *(10 * row["path"] for row in rows)))
    axes.set_xlabel("largest relative difference: at the start (bar), over all steps (dot); dashed: the limit")
    axes.grid(alpha=0.25, axis="x")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _page(
    out: Path, size: str, held: bool, cases: Sequence[Case], rows: Sequence[Mapping[str, Any]], picture: bytes
) -> None:
    from mutransfer.commands.output import command_line
    from mutransfer.report import Provenance, Section, Table, write_page

    columns = ("model", "sizes", "optimizer", "at the start", "over all steps", "where", "verdict")
    section = Section(
        "Does the grown model train as the small one?", verdict="PASS" if held else "FAIL",
        paragraphs=(
            f"The small model trains {BEFORE} steps, grows without noise, and both go on side by side on the same batches. At the start every layer's output "
            "and gradient is compared, after every step the model's output and every weight and buffer.",
        ),
        pictures=((picture, "Largest relative difference by model and optimizer"),),
        tables=(Table(columns, tuple(table(cases, rows)), "Largest relative differences, float64", frozenset(columns[3:5])),),
    )  # fmt: skip
    facts = Provenance.now(command_line(), data="topics, digits", seeds="0")
    write_page(out / "experiment.html", f"Exactness of growing ({size})", [section], facts)


EXACTNESS = Experiment(
    "grow-exactness", "the grown model beside the small one for 200 steps in float64, by optimizer: MLP, ResNet-18, GPT", "μpscaling",
    partial(run, config),
)  # fmt: skip
