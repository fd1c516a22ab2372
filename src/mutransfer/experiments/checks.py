"""Runs any experiment that is a set of coordinate checks: each must get its verdict; pictures and page show what grows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mutransfer.experiments.experiment import Experiment
from mutransfer.experiments.lines import Line, draw_lines, signed, slope

if TYPE_CHECKING:
    from mutransfer.check import CheckReport
    from mutransfer.report import Section
    from mutransfer.sweep import Options

PANELS = {
    "residual stream": ("size", "blocks.{last}"),
    "its change": ("change", "blocks.{last}"),
    "logits": ("size", "head"),
    "their change": ("change", "head"),
}
"""Title → kind of record and module; `{last}` is the number of the last block."""


@dataclass(frozen=True)
class Case:
    """One coordinate check: its recipe, the model's fields on top of the shared ones, and the verdict that it should get."""

    name: str
    recipe: str
    expected: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checks:
    """Coordinate checks of a GPT over one axis, the smallest size being the base. Learning rate and decay are the base's.

    `model` holds the fields that all cases share, `settings` what the optimizer takes beside the rate; gradients are clipped
    by the plan's norm at `clip`.
    """

    title: str
    axis: str
    sizes: tuple[int, ...]
    cases: tuple[Case, ...]
    model: Mapping[str, Any]
    optimizer: str
    lr: float
    settings: Mapping[str, Any]
    data: str
    batch: int
    steps: int
    seeds: int
    tokenizer: str | None = None
    clip: float | None = 1.0
    panels: Mapping[str, tuple[str, str]] = field(default_factory=lambda: dict(PANELS))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """What the checks of one axis gave, by case."""

    checks: Checks
    reports: Mapping[str, CheckReport]

    @property
    def exit_code(self) -> int:
        """0: every case got its verdict; 1: one got the opposite; else 3."""
        pairs = [(case.expected, self.reports[case.name].verdict) for case in self.checks.cases]
        if all(expected == verdict for expected, verdict in pairs):
            return 0
        return 3 if all(verdict in (expected, "INCONCLUSIVE") for expected, verdict in pairs) else 1

    def line(self, panel: str, case: str, step: int) -> Line:
        """Sizes and the mean over seeds of a panel's quantity after `step` steps; NaN where a run had been lost by then."""
        checks, report = self.checks, self.reports[case]
        kind, module = checks.panels[panel]
        values = []
        for i, size in enumerate(checks.sizes):
            depth = size if checks.axis == "depth" else checks.model["depth"]
            rows = report.raw.get(kind, module.format(last=depth - 1), step)
            values.append(math.nan if rows is None or np.isnan(rows[i]).any() else float(rows[i].mean()))
        return checks.sizes, values


def experiment(
    name: str, about: str, source: str, config: Callable[[str], tuple[Checks, ...]], published: str
) -> Experiment:
    """An experiment that is a set of checks in two sizes. `published`: what was reported."""
    return Experiment(name, about, source, partial(run, name, about, config, published))


def run(
    name: str, about: str, config: Callable[[str], tuple[Checks, ...]], published: str, size: str, out: Path, options: Options
) -> dict[str, Any]:  # fmt: skip
    """Make every check; `experiment.json`, `experiment.html` and pictures in `out`. Exit code 0 when each gets its verdict."""
    from mutransfer.commands.output import Progress, finite
    from mutransfer.files import write_whole

    every = config(size)
    results = []
    with Progress(name, float(sum(len(checks.cases) for checks in every))) as progress:
        for checks in every:
            reports = {case.name: _check(checks, case, _share(progress, case.name)) for case in checks.cases}
            results.append(Found(checks, reports))
    out.mkdir(parents=True, exist_ok=True)
    codes = [found.exit_code for found in results]
    outcome = {
        "exit_code": max(codes, key=(0, 3, 1).index), "experiment": name, "size": size, "words": words(results),
        "checks": [_plain(found) for found in results],
    }  # fmt: skip
    pictures = {found.checks.title: picture(found) for found in results}
    for i, data in enumerate(pictures.values(), 1):
        write_whole(out / (f"checks-{i}.png" if len(pictures) > 1 else "checks.png"), data)
    write_whole(out / "experiment.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, name, about, size, results, published, pictures)
    return outcome


def _share(progress: Any, name: str) -> Callable[[int, int, str], None]:
    before = progress.done

    def report(done: int, total: int, text: str) -> None:
        progress.advance(before + done / total - progress.done, f"{name}, {text}")

    return report


def _check(checks: Checks, case: Case, progress: Callable[[int, int, str], None]) -> CheckReport:
    from torch import nn

    from mutransfer.build import plan
    from mutransfer.check import coord_check
    from mutransfer.commands.builtin import factory, fitted
    from mutransfer.data import TextData, load
    from mutransfer.models import gpt_loss
    from mutransfer.train.ranks import resolve_device

    context = checks.model["context"]
    data = load(checks.data, tokenizer=checks.tokenizer, context=context)
    assert isinstance(data, TextData)
    make = factory("gpt", {**checks.model, **case.fields, **fitted("gpt", data)})
    base = {checks.axis: checks.sizes[0]}
    plans = {
        size: plan(make, base=base, target={checks.axis: size}, optimizer=checks.optimizer, recipe=case.recipe)
        for size in checks.sizes
    }

    def build(size: int) -> tuple[nn.Module, Any]:
        model = plans[size].initialize(make(**{checks.axis: size})).to(resolve_device("auto"))
        return model, plans[size].optimizer(model, lr=checks.lr, **checks.settings)

    def clip(model: nn.Module) -> None:
        assert checks.clip is not None
        plans[getattr(model.config, checks.axis)].clip_grad_norm_(model, checks.clip)

    return coord_check(
        build, checks.sizes, [data.batch(step, 0, checks.batch, context) for step in range(checks.steps)], gpt_loss,
        checks.steps, checks.seeds, axis=checks.axis, clip=None if checks.clip is None else clip, progress=progress,
    )  # fmt: skip


def words(results: list[Found]) -> str:
    """Per axis a table: the verdict of every case, and the slope of every panel after the last step."""
    lines = []
    for found in results:
        checks = found.checks
        wide = max(len(case.name) for case in checks.cases) + 2
        lines.append(
            f"{checks.title}: slope of log size against log {checks.axis} after {checks.steps} steps, {checks.axis} "
            f"{checks.sizes[0]} … {checks.sizes[-1]}"
        )
        lines.append(" " * wide + "".join(f"{panel:>17}" for panel in checks.panels) + "   verdict")
        for case in checks.cases:
            cells = [signed(slope(found.line(panel, case.name, checks.steps))) for panel in checks.panels]
            lines.append(
                case.name.ljust(wide) + "".join(f"{cell:>17}" for cell in cells) + "   " + _verdict(found, case)
            )
    return "\n".join(lines)


def _verdict(found: Found, case: Case) -> str:
    verdict = found.reports[case.name].verdict
    return verdict if verdict == case.expected else f"{verdict} (should be {case.expected})"


def _first(checks: Checks, panel: str) -> int:
    """The step at which a panel's first slope is taken: nothing has changed before the first step."""
    return 1 if checks.panels[panel][0] == "change" else 0


def _plain(found: Found) -> dict[str, Any]:
    checks = found.checks
    cases = []
    for case in checks.cases:
        report = found.reports[case.name]
        panels = [
            {"panel": panel, "first": slope(found.line(panel, case.name, _first(checks, panel))),
             "last": slope(found.line(panel, case.name, checks.steps)), "values": found.line(panel, case.name, checks.steps)[1]}
            for panel in checks.panels
        ]  # fmt: skip
        cases.append({
            "name": case.name, "expected": case.expected, "verdict": report.verdict, "culprits": report.culprits,
            "said": report.words(), "panels": panels,
        })  # fmt: skip
    return {**checks.to_dict(), "cases": cases}


def picture(found: Found) -> bytes:
    """PNG: a panel per quantity, a line per case, sizes after the last step."""
    checks = found.checks
    panels = {
        panel: {f"{c.name}: {found.reports[c.name].verdict}": found.line(panel, c.name, checks.steps) for c in checks.cases}
        for panel in checks.panels
    }  # fmt: skip
    return draw_lines(panels, checks.axis, f"root mean square after {checks.steps} steps")


def _page(
    out: Path, name: str, about: str, size: str, results: list[Found], published: str, pictures: Mapping[str, bytes]
) -> None:
    from mutransfer.commands.output import command_line
    from mutransfer.report import Provenance, Section, write_page

    sections = []
    for found in results:
        sections.append(_overview(found, published, pictures[found.checks.title]))
        sections += [_one(found, case, out) for case in found.checks.cases]
    grid = json.dumps([found.checks.to_dict() for found in results], indent=1, ensure_ascii=False)
    sections.append(Section("The setting", fixed=grid, folded="every field of it"))
    checks = results[0].checks
    facts = Provenance.now(command_line(), data=checks.data, seeds=", ".join(map(str, range(checks.seeds))))
    write_page(out / "experiment.html", f"{about[0].upper()}{about[1:]} ({size})", sections, facts)


def _overview(found: Found, published: str, data: bytes) -> Section:
    from mutransfer.report import Section, Table

    checks = found.checks
    columns = [(panel, when) for panel in checks.panels for when in (_first(checks, panel), checks.steps)]
    table = Table(
        ("variant", *(f"{panel}, step {when}" for panel, when in columns), "verdict"),
        tuple(
            (case.name, *(signed(slope(found.line(panel, case.name, when))) for panel, when in columns), _verdict(found, case))
            for case in checks.cases
        ),
        f"Slope of log size against log {checks.axis}; – where it is zero or a run was lost",
        frozenset(f"{panel}, step {when}" for panel, when in columns),
    )  # fmt: skip
    return Section(
        checks.title,
        verdict={0: "PASS", 1: "FAIL", 3: "INCONCLUSIVE"}[found.exit_code],
        paragraphs=("PASS here means that every variant gets the verdict that it should.", f"Published: {published}"),
        pictures=((data, f"Sizes after {checks.steps} steps against {checks.axis}, one line per variant"),),
        tables=(table,),
    )


def _one(found: Found, case: Case, out: Path) -> Section:
    """The check's own section; of the table of slopes only what is there at every size."""
    import tempfile

    from mutransfer.report import check_section

    report = found.reports[case.name]
    with tempfile.TemporaryDirectory(dir=out) as folder:
        figure = report.figure(Path(folder) / "check.png").read_bytes()
    data = report.to_dict()
    data["table"] = [row for row in data["table"] if row["slope"] is not None]
    return check_section(data, figure, f"{case.name}, over {found.checks.axis}")
