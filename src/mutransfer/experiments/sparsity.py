"""Sizes of activations over the density of the hidden matrices, a fixed share of weights being kept: SP, μP and SμPar (2405.15743).

A sparse matrix sums over ρ times as many inputs, so that outputs at the start shrink like `√ρ`, and those of a sign-like step like ρ.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.experiments.experiment import Experiment
from mutransfer.experiments.lines import Line, draw_lines, signed, slope

if TYPE_CHECKING:
    from mutransfer.data import TextData
    from mutransfer.sweep import Options

VARIANTS = {"SP": "sp", "μP": "mup", "SμPar": "supar"}
PANELS = {
    "attention": "blocks.{last}.attn",
    "MLP": "blocks.{last}.mlp",
    "residual stream": "blocks.{last}",
    "logits": "head",
}
JUDGED = ("attention", "MLP")
"""What a sparse matrix gives directly: behind it an embedding, or a norm, hides the loss."""
FLAT = 0.15
"""The largest exponent, by absolute value, of a size that does not depend on density; SP and μP must exceed twice as much."""


@dataclass(frozen=True)
class Config:
    """A GPT of one width under AdamW, decay 0.1, betas .9 and .95, clipped at 1. `base`: the dense width that the plans start from."""

    width: int
    base: int
    head_size: int
    context: int
    batch: int
    seeds: int
    data: str
    init_std: float
    lr: float
    tokenizer: str | None = None
    depth: int = 2
    steps: int = 10
    densities: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)


def config(size: str) -> Config:
    """Width 2048; small: width 256, σ·√width and hidden learning rate · width kept."""
    if size == "paper":
        return Config(
            2048, 256, head_size=64, context=1024, batch=8, seeds=5, data="shakespeare", init_std=0.02, lr=1e-2
        )
    return Config(256, 32, head_size=16, context=64, batch=4, seeds=3, data="topics", init_std=0.0566, lr=1e-2)


def measure(variant: str, density: float, seed: int, setting: Config, data: TextData) -> dict[tuple[str, int], float]:
    """Root mean square of every panel's output on the first batch, before the first step and after the last."""
    import torch
    from torch import Tensor, nn

    from mutransfer import sparsity
    from mutransfer.build import plan
    from mutransfer.models import gpt_factory, gpt_loss
    from mutransfer.train.ranks import resolve_device

    make = gpt_factory(
        vocab_size=data.vocab_size, context=setting.context, depth=setting.depth, head_size=setting.head_size,
        init_std=setting.init_std,
    )  # fmt: skip
    base, target = {"width": setting.base}, {"width": setting.width}
    thin = None if density == 1 else density
    made = plan(make, base=base, target=target, recipe=VARIANTS[variant], density=thin if variant == "SμPar" else None)
    device = resolve_device("auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = made.initialize(make(width=setting.width), seed=seed).to(device)
    if thin is not None and variant != "SμPar":  # the same masks, and nothing is scaled for them
        sparsity.attach(plan(make, base=base, target=target, recipe="supar", density=thin), model, seed)
    optimizer = made.optimizer(model, lr=setting.lr, weight_decay=0.1, betas=(0.9, 0.95))
    batches = [data.batch(step, 0, setting.batch, setting.context, device) for step in range(setting.steps)]
    found: dict[tuple[str, int], float] = {}

    def look(step: int) -> None:
        def keep(panel: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                found[panel, step] = float(output.float().square().mean().sqrt())

            return hook

        modules = {panel: model.get_submodule(path.format(last=setting.depth - 1)) for panel, path in PANELS.items()}
        handles = [module.register_forward_hook(keep(panel)) for panel, module in modules.items()]
        with torch.no_grad():
            gpt_loss(model, batches[0])
        for handle in handles:
            handle.remove()

    look(0)
    for batch in batches:
        gpt_loss(model, batch).backward()
        made.clip_grad_norm_(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    look(setting.steps)
    return found


def run(size: str, out: Path, options: Options) -> dict[str, Any]:
    """`experiment.json`, `experiment.html` and `density.png` in `out`. Exit code 0 when SμPar is flat and SP and μP are not."""
    from mutransfer.commands.output import Progress, finite
    from mutransfer.data import TextData, load
    from mutransfer.files import write_whole

    setting = config(size)
    data = load(setting.data, tokenizer=setting.tokenizer, context=setting.context)
    assert isinstance(data, TextData)
    rows: list[dict[str, Any]] = []
    with Progress("sparsity", float(len(VARIANTS) * len(setting.densities) * setting.seeds)) as progress:
        for variant in VARIANTS:
            for density in setting.densities:
                for seed in range(setting.seeds):
                    for (panel, step), value in measure(variant, density, seed, setting, data).items():
                        rows.append({"variant": variant, "density": density, "seed": seed, "panel": panel, "step": step, "rms": value})  # fmt: skip
                    progress.advance(1.0, f"{variant}, density {density:g}")
    slopes = {(v, p, s): slope(line(rows, v, p, s)) for v in VARIANTS for p in PANELS for s in (0, setting.steps)}
    held = holds(slopes, setting.steps)
    outcome = {
        "exit_code": 0 if held else 1, "experiment": SPARSITY.name, "size": size, "words": words(slopes, setting), "setting": asdict(setting),
        "slopes": [{"variant": v, "panel": p, "step": s, "slope": b} for (v, p, s), b in slopes.items()], "rows": rows,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    panels = {panel: {name: line(rows, name, panel, setting.steps) for name in VARIANTS} for panel in PANELS}
    picture = draw_lines(panels, "density", f"root mean square after {setting.steps} steps")
    write_whole(out / "density.png", picture)
    write_whole(out / "experiment.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, size, held, slopes, setting, picture)
    return outcome


def line(rows: list[dict[str, Any]], variant: str, panel: str, step: int) -> Line:
    """Densities and the mean over seeds."""
    mine = [row for row in rows if (row["variant"], row["panel"], row["step"]) == (variant, panel, step)]
    densities = sorted({row["density"] for row in mine})
    return densities, [statistics.mean(row["rms"] for row in mine if row["density"] == d) for d in densities]


def holds(slopes: dict[tuple[str, str, int], float | None], steps: int) -> bool:
    """Whether the outputs of sparse branches are flat for SμPar, at the start and after training, and fall with density for the others."""
    flat = [slopes["SμPar", panel, step] for panel in JUDGED for step in (0, steps)]
    steep = [slopes[variant, panel, step] for variant in ("SP", "μP") for panel in JUDGED for step in (0, steps)]
    return all(abs(b if b is not None else math.inf) <= FLAT for b in flat) and all(
        (b or 0.0) >= 2 * FLAT for b in steep
    )


def words(slopes: dict[tuple[str, str, int], float | None], setting: Config) -> str:
    """Per variant the exponents in density, at the start → after the last step."""
    lines = [
        f"slope of log size against log density, at the start → after {setting.steps} steps, density "
        f"{setting.densities[0]:g} … {setting.densities[-1]:g}",
        " " * 8 + "".join(f"{panel:>18}" for panel in PANELS),
    ]
    for name in VARIANTS:
        cells = [" → ".join(signed(slopes[name, panel, step]) for step in (0, setting.steps)) for panel in PANELS]
        lines.append(name.ljust(8) + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def _page(
    out: Path, size: str, held: bool, slopes: dict[tuple[str, str, int], float | None], setting: Config, picture: bytes
) -> None:
    from mutransfer.commands.output import command_line
    from mutransfer.report import Provenance, Section, Table, write_page

    steps = (0, setting.steps)
    columns = ("variant", *(f"{panel}, step {step}" for panel in PANELS for step in steps))
    rows = tuple(
        (name, *(signed(slopes[name, panel, step]) for panel in PANELS for step in steps)) for name in VARIANTS
    )
    section = Section(
        "Do activations keep their size when most weights are gone?",
        verdict="PASS" if held else "FAIL",
        paragraphs=(
            f"PASS: attention and MLP of SμPar have slopes within {FLAT:g}, those of SP and μP {2 * FLAT:g} or more, at the start and after training.",
            "Published (SμPar): SP and μP slope with density, SμPar is flat.",
        ),
        pictures=((picture, "Sizes of attention, MLP, residual stream and logits against density, one line per variant"),),
        tables=(Table(columns, rows, "Slope of log size against log density", frozenset(columns[1:])),),
        fixed=json.dumps(asdict(setting), indent=1), folded="the setting",
    )  # fmt: skip
    facts = Provenance.now(command_line(), data=setting.data, seeds=", ".join(map(str, range(setting.seeds))))
    write_page(out / "experiment.html", f"Activations over density ({size})", [section], facts)


SPARSITY = Experiment(
    "sparsity", "sizes of activations over the density of hidden matrices, SP, μP and SμPar", "SμPar", run
)
