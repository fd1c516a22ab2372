"""Loss prediction over width (Mu-scaling): one learning rate for all, the largest widths hidden, predicted from the rest, revealed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError
from mutransfer.experiments import mu_scaling
from mutransfer.experiments.experiment import Experiment
from mutransfer.experiments.grid import Grid, Variant
from mutransfer.experiments.nanogpt import SMALL
from mutransfer.experiments.transfer import Picture

if TYPE_CHECKING:
    from mutransfer.predict.holdout import Revealed
    from mutransfer.predict.outcome import Outcome as Foretold
    from mutransfer.report import Table
    from mutransfer.sweep import Options

LEVEL = 0.9
"""Of the intervals."""
CLOSE = 0.01
"""A hidden loss is predicted when the prediction is at most this share off, and the loss lies in the interval."""
FIELDS = (
    "width", "depth", "params", "vocab_size", "context", "tied", "batch", "steps", "recipe", "lr", "seed", "status",
)  # fmt: skip
"""What the law is told of a run, beside its loss: sizes to choose from, and what makes runs comparable."""


@dataclass(frozen=True)
class Setting:
    """The runs, each variant at one learning rate, and how many of the largest sizes are hidden."""

    grid: Grid
    hidden: int

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """The largest ones, in order."""
        return tuple(sorted(self.grid.sizes)[-self.hidden :])


def config(size: str) -> Setting:
    """12 layers, base width 256, 20,000 updates, widths 128 … 896 and 1024 … 3072 hidden; small: widths 32 … 112, 128 and 160 hidden.

    The small runs are six times as long as those of the other small experiments: in between the loss falls steeply, at another update with every
    seed, and two seeds of one width differ by more than two widths do. 2^-6 is the best rate of width 32 (of powers of two) at this length, too.
    """
    if size == "small":
        run, widths, seeds, lr = (
            SMALL | {"steps": 1200, "warmup": 120},
            (32, 48, 64, 80, 96, 112, 128, 160),
            (0, 1),
            2**-6,
        )
    else:
        run = {**mu_scaling.config("paper").run, "depth": 12, "base.width": 256}
        widths, seeds, lr = (128, 256, 384, 512, 640, 768, 896, 1024, 2048, 3072), (0,), 1e-3
    variants = (Variant("SP", {"recipe": "sp"}, (lr,)), Variant("μP", {"recipe": "mup"}, (lr,)))
    return Setting(Grid(run, widths, seeds, variants, judged=("μP",)), hidden=2 if size == "small" else 3)


def close(one: Revealed) -> bool:
    """Whether a hidden size was predicted: within `CLOSE`, and inside the interval."""
    return abs(one.error) <= CLOSE and one.inside


@dataclass(frozen=True)
class Outcome:
    """What came out: by variant the law of the smaller sizes and the hidden ones revealed, small to large, or why no law could be fitted.

    A hidden size of which a run diverged has an infinite loss: nothing predicts that.
    """

    setting: Setting
    found: Mapping[str, Foretold]
    refused: Mapping[str, str]

    @property
    def exit_code(self) -> int:
        """0 when every hidden size of every judged variant was predicted, else 1."""
        return 0 if all(self.status(name) == "PASS" for name in self.setting.grid.judged) else 1

    def status(self, variant: str) -> str:
        """PASS when all its hidden sizes were predicted, FAIL when one was not, "–" where no law could be fitted."""
        found = self.found.get(variant)
        return "–" if found is None else "PASS" if all(map(close, found.revealed)) else "FAIL"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with whatever is not finite."""
        grid, hidden = self.setting.grid, self.setting.hidden_sizes
        return {
            "grid": grid.to_dict(), "hidden": list(hidden), "judged": list(grid.judged), "refused": dict(self.refused),
            "variants": {
                name: {
                    "status": self.status(name), **{key: value for key, value in one.to_dict().items() if key != "exit_code"},
                    "held_out": [{grid.size: size, **r.to_dict(), "close": close(r)} for size, r in zip(hidden, one.revealed, strict=True)],
                }
                for name, one in self.found.items()
            },
        }  # fmt: skip


def run(config: Callable[[str], Setting], size: str, out: Path, options: Options) -> dict[str, Any]:
    """Make what is missing of the runs in `out`; `experiment.html`, `experiment.json` and pictures there. Runs once made are kept."""
    from mutransfer.commands.output import command_line, finite
    from mutransfer.files import write_whole
    from mutransfer.sweep import Store, Wanted, sweep

    setting, name = config(size), PREDICTION.name
    wanted = {v.name: [Wanted.of(c) for c in setting.grid.configs(v)] for v in setting.grid.variants}
    records = sweep([run for runs in wanted.values() for run in runs], out, options, label=name)
    by_key = {record["key"]: record for record in records}
    with Store(out) as store:
        store.note("command", command_line())
        store.note("experiment", {"name": name, "size": size, "variants": {v: [r.key for r in runs] for v, runs in wanted.items()}})  # fmt: skip
    found = reveal_all(setting, {v: [by_key[run.key] for run in runs] for v, runs in wanted.items()})
    pictures = draw(found)
    for file, data, _ in pictures:
        write_whole(out / f"{file}.png", data)
    outcome = {"exit_code": found.exit_code, "words": words(found), "experiment": name, "size": size, **found.to_dict()}
    write_whole(out / "experiment.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, size, found, pictures)
    return outcome


def reveal_all(setting: Setting, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Outcome:
    """Per variant: the law of the smaller sizes, what it says of the hidden ones, and what those reached."""
    found: dict[str, Foretold] = {}
    refused: dict[str, str] = {}
    for variant, ended in records.items():
        try:
            found[variant] = _foretold(setting, ended)
        except InputError as error:
            refused[variant] = str(error)
    return Outcome(setting, found, refused)


def _foretold(setting: Setting, records: Sequence[Mapping[str, Any]]) -> Foretold:
    from mutransfer.predict import fit_loss, read_points
    from mutransfer.predict.holdout import drop_one, reveal, split
    from mutransfer.predict.outcome import Outcome as Foretold
    from mutransfer.sweep.store import flat_row

    size, metric, hidden = setting.grid.size, setting.grid.metrics[0], setting.hidden_sizes
    rows: list[dict[str, Any]] = [{name: row.get(name) for name in (*FIELDS, metric)} for row in map(flat_row, records)]
    losses: dict[int, list[float]] = {one: [] for one in hidden}
    known = [row[metric] for row in rows if row[size] not in hidden and row[metric] is not None]
    for row in rows:
        if row[size] in hidden:
            losses[row[size]].append(math.inf if row[metric] is None else row[metric])
            # until it is revealed a hidden run has another's loss: nothing that is chosen can depend on its own
            row |= {metric: min(known, default=None), "status": "finished"}
    spec = f"{size}>={hidden[0]}"
    fitted, masked = split(read_points(rows, loss=metric), spec)
    law = fit_loss(fitted)
    revealed = tuple(
        replace(one, losses=tuple(losses[at])) for one, at in zip(reveal(law, masked, LEVEL), hidden, strict=True)
    )
    return Foretold(law, (), revealed, drop_one(law, revealed), LEVEL, spec)


def words(found: Outcome) -> str:
    """A line per variant and hidden size: predicted, its interval, reached, error."""
    grid, hidden = found.setting.grid, found.setting.hidden_sizes
    fitted = [size for size in sorted(grid.sizes) if size not in hidden]
    wide = max(len(v.name) for v in grid.variants) + 2
    lines = [
        f"{grid.metrics[0]} at {grid.size} {listed(hidden)}, predicted from {grid.size} {fitted[0]} … {fitted[-1]} at one learning "
        f"rate; predicted if at most {100 * CLOSE:g} % off and inside the {LEVEL:.0%} interval"
    ]  # fmt: skip
    for variant in grid.variants:
        if variant.name in found.refused:
            lines.append(f"{variant.name.ljust(wide)}{'–':6}{found.refused[variant.name]}")
            continue
        for i, row in enumerate(_rows(found, variant.name)):
            at, predicted, interval, reached, error, inside, _ = row
            first = found.status(variant.name) if not i else ""
            lines.append(
                f"{variant.name.ljust(wide) if not i else ' ' * wide}{first:6}{grid.size} {at}: {predicted} {interval}, reached {reached}, "
                f"{error}, {inside}"
            )  # fmt: skip
    return "\n".join(lines)


def listed(sizes: Sequence[int]) -> str:
    """128 and 160."""
    *most, last = map(str, sizes)
    return f"{', '.join(most)} and {last}" if most else last


def _rows(found: Outcome, variant: str) -> list[tuple[str, ...]]:
    """Per hidden size: size, predicted, interval, reached, error, inside or not, how many of its runs are inside."""
    rows = []
    for size, one in zip(found.setting.hidden_sizes, found.found[variant].revealed, strict=True):
        p, gone = one.prediction, sum(map(math.isinf, one.losses))
        reached = f"{one.loss:.4f}" if not gone else f"diverged ({gone} of {len(one.losses)})"
        error = "–" if gone else f"{100 * one.error:+.2f} %"
        runs = f"{sum(map(p.holds, one.losses))} of {len(one.losses)}"
        rows.append((str(size), f"{p.loss:.4f}", f"[{p.low:.4f}, {p.high:.4f}]", reached, error, "inside" if one.inside else "outside", runs))  # fmt: skip
    return rows


def draw(found: Outcome) -> list[Picture]:
    """The variants side by side; a hidden size of which a run diverged is left out."""
    from mutransfer.predict.figure import draw_prediction

    shown = {
        name: replace(one, revealed=tuple(r for r in one.revealed if math.isfinite(r.loss)))
        for name, one in found.found.items()
    }
    if not shown:
        return []
    text = "Loss against size: runs, the law with its interval, the hidden sizes as predicted and as they came out; below, in per cent of the law"
    return [("prediction", draw_prediction(shown), text)]


def _page(out: Path, size: str, found: Outcome, pictures: list[Picture]) -> None:
    from mutransfer.commands.output import command_line
    from mutransfer.report import Provenance, Section, prediction_section, write_page

    grid = found.setting.grid
    sections = [
        Section(
            f"Are the largest {grid.size}s predicted?",
            verdict="FAIL" if found.exit_code else "PASS",
            paragraphs=(
                f"The verdict is that of: {', '.join(grid.judged)}. A hidden {grid.size} is predicted when the mean of its runs is at most "
                f"{100 * CLOSE:g} % from the prediction and inside its {LEVEL:.0%} interval, which is that of one run.",
                PUBLISHED,
                *(f"{name}: {reason}" for name, reason in found.refused.items()),
            ),
            pictures=tuple((data, text) for _, data, text in pictures),
            tables=(_table(found),),
        ),
        *(replace(prediction_section(one, name), verdict=found.status(name)) for name, one in found.found.items()),
        Section("The grid", fixed=json.dumps(grid.to_dict(), indent=1, ensure_ascii=False), folded="every field of it"),
    ]  # fmt: skip
    facts = Provenance.now(command_line(), data=str(grid.run["data"]), seeds=", ".join(map(str, grid.seeds)))
    write_page(out / "experiment.html", f"Loss prediction over {grid.size} ({size})", sections, facts)


def _table(found: Outcome) -> Table:
    from mutransfer.report import Table

    columns = ("predicted", "interval", "reached", "error")
    rows = [(name, *row) for name in found.found for row in _rows(found, name)]
    return Table(
        ("variant", found.setting.grid.size, *columns, "mean of runs", "runs inside"), tuple(rows),
        f"{found.setting.grid.metrics[0]} of the hidden sizes", frozenset((found.setting.grid.size, *columns)),
    )  # fmt: skip


PUBLISHED = (
    "Published (Mu-scaling): 12 layers, widths 128 … 896 fitted by L = a·N^b + c over all parameters, one run each; errors +0.29, -0.18 and -0.18 % at "
    "widths 1024, 2048 and 3072, without intervals."
)
PREDICTION = Experiment(
    "loss-prediction", "loss of the largest widths, hidden and predicted from the smaller ones at one learning rate, SP and μP", "Mu-scaling",
    partial(run, config),
)  # fmt: skip
