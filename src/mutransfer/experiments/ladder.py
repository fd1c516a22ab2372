"""From the standard parametrization to μP in five steps, each removing one growth with width."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.experiments.experiment import Experiment

if TYPE_CHECKING:
    from torch import nn

    from mutransfer.check import CheckReport
    from mutransfer.sweep import Options

RUNGS = ("SP", "+ hidden init", "+ hidden LR", "+ logits 1/√N", "+ logits 1/N", "+ attention 1/d (μP)")
PANELS = {"embedding": "wte", "attention": "blocks.1.attn", "MLP": "blocks.1.mlp", "logits": "head"}


@dataclass(frozen=True)
class Config:
    """One size of the ladder. Tied embeddings, no biases, AdamW at one learning rate, clipping at 1."""

    widths: tuple[int, ...]
    head_size: int
    context: int
    batch: int
    seeds: int
    data: str
    steps: int = 10
    depth: int = 2
    init_std: float = 0.02
    lr: float = 1e-2


def config(size: str) -> Config:
    """The whole setting: "paper" is the published grid, "small" its structure at an eighth of the width, σ·√width kept."""
    if size == "paper":
        return Config((256, 512, 1024, 2048, 4096), head_size=64, context=1024, batch=8, seeds=5, data="shakespeare")
    return Config((32, 64, 128, 256), head_size=16, context=64, batch=4, seeds=3, data="topics", init_std=0.0566)


def build(rung: int, width: int, setting: Config, vocab_size: int) -> tuple[nn.Module, Any]:
    """The model and optimizer of one rung (0: SP … 5: μP) by hand, as the published code does it: no plan involved."""
    import torch

    from mutransfer.hooks import Hook, attach
    from mutransfer.models import GPT, GPTConfig

    growth = width / setting.widths[0]
    model = GPT(
        GPTConfig(
            vocab_size=vocab_size, context=setting.context, width=width, depth=setting.depth,
            head_size=setting.head_size, tied=True, init_std=setting.init_std,
        )
    )  # fmt: skip
    hidden = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    hooks = []
    if rung >= 1:
        with torch.no_grad():
            for weight in hidden:
                weight.mul_(growth**-0.5)
    if rung >= 3:
        hooks.append(Hook("head", "input", growth ** (-0.5 if rung == 3 else -1.0), "logits"))
    if rung >= 5:
        for i in range(setting.depth):
            hooks.append(Hook(f"blocks.{i}.attn.q_proj", "output", setting.head_size**-0.5, "attention 1/d"))
    attach(model, tuple(hooks))
    # the published code leaves the decay as it is, so that lr·decay falls with width; here their product stays
    slower, decay = (growth if rung >= 2 else 1.0), 0.1
    groups = [{"params": hidden, "lr": setting.lr / slower, "weight_decay": decay * slower}, {"params": rest}]
    # μP scales eps like the gradient, 1/N: negligible at every width it needs no rung of its own
    return model, torch.optim.AdamW(groups, lr=setting.lr, betas=(0.9, 0.95), eps=1e-12, weight_decay=decay)


def run(size: str, out: Path, options: Options) -> dict[str, Any]:
    """Six coordinate checks; `ladder.json`, `ladder.png` and `report.html` in `out`. Exit code 0 when μP passes and SP does not."""
    from mutransfer.check import coord_check
    from mutransfer.commands.output import Progress, finite
    from mutransfer.data import TextData, load
    from mutransfer.files import write_atomic, write_whole
    from mutransfer.models import gpt_loss

    setting = config(size)
    data = load(setting.data, context=setting.context)
    assert isinstance(data, TextData)
    batches = [data.batch(step, 0, setting.batch, setting.context) for step in range(setting.steps)]
    reports: list[CheckReport] = []
    with Progress("ladder", float(len(RUNGS))) as progress:
        for rung, name in enumerate(RUNGS):

            def at(width: int, rung: int = rung) -> tuple[nn.Module, Any]:
                return build(rung, width, setting, data.vocab_size)

            done = progress.done
            reports.append(
                coord_check(
                    at, setting.widths, batches, gpt_loss, setting.steps, setting.seeds, clip=1.0,
                    progress=_share(progress, done, name),
                )
            )  # fmt: skip
    rows = slopes(reports, setting.steps)
    verdicts = {name: report.verdict for name, report in zip(RUNGS, reports, strict=True)}
    outcome = {
        "exit_code": 0 if verdicts[RUNGS[-1]] == "PASS" and verdicts[RUNGS[0]] == "FAIL" else 1,
        "size": size, "widths": setting.widths, "verdicts": verdicts, "slopes": rows, "words": words(rows, verdicts, setting),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    picture = draw(reports, setting)
    write_atomic(out / "ladder.png", lambda file: file.write(picture))
    write_whole(out / "ladder.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, size, rows, verdicts, picture, setting)
    return outcome


def _share(progress: Any, before: float, name: str) -> Callable[[int, int, str], None]:
    def report(done: int, total: int, text: str) -> None:
        progress.advance(before + done / total - progress.done, f"{name}, {text}")

    return report


def slopes(reports: list[CheckReport], last: int) -> list[dict[str, Any]]:
    """Per rung and panel: the slope of log size against log width before the first and after the last step (None where it is zero)."""
    rows = []
    for name, report in zip(RUNGS, reports, strict=True):
        for panel, module in PANELS.items():
            first, end = report.slope("size", module, 0), report.slope("size", module, last)
            rows.append({"rung": name, "panel": panel, "first": first and first[0], "last": end and end[0]})
    return rows


def words(rows: list[dict[str, Any]], verdicts: dict[str, str], setting: Config) -> str:
    """The table as text: slopes after the last step, one line per rung."""
    lines = [
        f"slope of log size against log width after {setting.steps} steps, widths {setting.widths[0]} … {setting.widths[-1]}"
    ]
    lines.append(f"{'':22}" + "".join(f"{panel:>11}" for panel in PANELS) + "   verdict")
    for name in RUNGS:
        cells = [row["last"] for row in rows if row["rung"] == name]
        lines.append(f"{name:22}" + "".join(f"{_number(cell):>11}" for cell in cells) + f"   {verdicts[name]}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def draw(reports: list[CheckReport], setting: Config) -> bytes:
    """PNG: one panel per kind of output, size after the last step against width, one line per rung."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS))
    for axis, (panel, module) in zip(axes, PANELS.items(), strict=True):
        for rung, (name, report) in enumerate(zip(RUNGS, reports, strict=True)):
            found = [r for r in report.table if (r["kind"], r["name"], r["step"]) == ("size", module, setting.steps)]
            values = found[0]["values"] if found else []
            color = colormaps["viridis"](0.05 + 0.17 * rung)
            axis.plot(setting.widths, values, marker=".", color=color, label=name) if values else None
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(setting.widths, [str(width) for width in setting.widths])
        axis.set_title(panel)
        axis.set_xlabel("width")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(f"root mean square after {setting.steps} steps")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(RUNGS), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _page(
    out: Path, size: str, rows: list[dict[str, Any]], verdicts: dict[str, str], picture: bytes, setting: Config
) -> None:
    from mutransfer.report import Provenance, Section, Table, write_page

    table = Table(
        ("rung", *(f"{panel}, {when}" for panel in PANELS for when in ("start", f"step {setting.steps}")), "verdict"),
        tuple(
            (
                name,
                *(_number(row[at]) for row in rows if row["rung"] == name for at in ("first", "last")),
                verdicts[name],
            )
            for name in RUNGS
        ),
        "Slope of log size against log width",
    )
    section = Section(
        "From SP to μP, one change at a time",
        paragraphs=(
            "Activations of μP stay the same size at every width; logits of the tied head fall like width^-½ at the start, as they "
            "should. The last rung is invisible because the head size is fixed. The published code leaves the decay of hidden "
            "weights unscaled, which the check would fail: here learning rate times decay stays fixed, and eps is negligible.",
        ),
        pictures=((picture, "Size of embedding, attention, MLP and logits against width, one line per rung"),),
        tables=(table,),
    )
    facts = Provenance.now(
        f"mutransfer experiments {LADDER.name} --size {size}", data=setting.data, seeds=str(setting.seeds)
    )
    write_page(out / "report.html", "The ladder from SP to μP", [section], facts)


LADDER = Experiment(
    "coord-ladder", "coordinate checks from SP to μP in six rungs, each removing one growth", "nanoGPT-mup", run
)
