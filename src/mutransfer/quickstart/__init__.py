"""The main job end to end: does μP transfer here, and does the standard parametrization not?"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.commands.output import Progress, command_line, duration, require_folder
from mutransfer.quickstart.checks import check_recipe
from mutransfer.quickstart.setting import RECIPES, TITLES, Setting

if TYPE_CHECKING:
    from mutransfer.data import TextData
    from mutransfer.sweep.executor import Executor
    from mutransfer.verdict import Verdict

_CHECK_COST = 7.0  # a recorded step of the check against a plain training step of the same rows, measured
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Outcome:
    """The verdicts: one coordinate check and one transfer of each parametrization, and where the report is."""

    checks: Mapping[str, Mapping[str, Any]]
    transfers: Mapping[str, Verdict]
    setting: Setting
    out: Path
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 when μP passes its check and transfers, 1 when one of them fails, 3 when that cannot be told."""
        said = {self.checks["mup"]["verdict"], self.transfers["mup"].status}
        return 1 if said & {"FAIL", "DRIFTS"} else 3 if "INCONCLUSIVE" in said else 0

    def words(self) -> str:
        """The verdict as a text of a few lines."""
        lines = [f"Coordinate check over widths {_list(self.setting.check_widths)}"]
        for recipe, check in self.checks.items():
            first = f"; most upstream culprit {check['culprits'][0]}" if check["culprits"] else ""
            lines.append(f"  {TITLES[recipe]}: {check['verdict']}{first}")
        lines.append(
            f"Learning-rate transfer over widths {_list(self.setting.widths)}, {self.setting.steps} steps a run"
        )
        for recipe, verdict in self.transfers.items():
            best = ", ".join(f"2^{found.log2_lr.value:.1f}" for found in verdict.optima)
            lines.append(f"  {TITLES[recipe]}: {verdict.status}: {verdict.reasons[0]}")
            lines.append(f"    best learning rates {best}; best losses {_losses(verdict)}")
        lines.append(self.conclusion())
        lines.append(f"report: {self.out / 'report.html'}  (took {duration(self.seconds)})")
        return "\n".join(lines)

    def conclusion(self) -> str:
        """What follows, in one sentence."""
        base, top = self.setting.widths[0], self.setting.widths[-1]
        if self.exit_code == 0:
            end = "it does not" if self.transfers["sp"].status == "DRIFTS" else "this run cannot tell"
            return (
                f"With μP, tune at width {base} and train at width {top}: the learning rate transfers. "
                f"With the standard parametrization {end}."
            )
        if self.exit_code == 3:
            return "This run cannot tell whether μP transfers here: the report says which runs would."
        return "μP does not hold here: look at the report, and file it as a bug with the report attached."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        checks = {
            name: {key: check[key] for key in ("verdict", "culprits", "words")} for name, check in self.checks.items()
        }
        return {
            "exit_code": self.exit_code, "checks": checks,
            "transfer": {name: verdict.to_dict() for name, verdict in self.transfers.items()},
            "conclusion": self.conclusion(), "report": str(self.out / "report.html"), "seconds": self.seconds,
        }  # fmt: skip


def quickstart(out: Path, setting: Setting | None = None, workers: int | None = None) -> Outcome:
    """Two coordinate checks and a sweep: `runs.sqlite`, `transfer.png` and `report.html` in `out`, and the verdicts.

    What is found in the store is not made again. Raises InputError when `out` cannot be written.
    """
    from mutransfer.data import TextData, load
    from mutransfer.report.write import write_report
    from mutransfer.sweep import Options, Store, Wanted, read_rows
    from mutransfer.sweep.cost import estimate
    from mutransfer.sweep.sweep import make, missing_runs
    from mutransfer.sweep.workers import Workers, available_cores
    from mutransfer.verdict import transfer_verdicts
    from mutransfer.verdict.figure import draw_curves

    setting = setting or Setting()
    start = time.perf_counter()
    require_folder(out)
    data = load(setting.data, context=setting.context)
    assert isinstance(data, TextData)
    runs = [Wanted.of(config) for config in setting.runs(data.vocab_size)]
    known, missing = missing_runs(runs, out)
    checks = _known_checks(out, setting, data)
    todo = [recipe for recipe in RECIPES if recipe not in checks]
    _say(
        f"GPTs of width {_list(sorted({*setting.widths, *setting.check_widths}))} on {len(data.train):,} characters of "
        "the Python language reference"
    )
    with Workers(workers or max(1, min(_MOST_WORKERS, available_cores(), len(missing) + len(todo)))) as executor:
        cost = estimate(list(missing.values()), executor, 1, list(known.values()))
        check_seconds = _check_seconds(setting, cost.seconds, missing) if missing else 0.0
        if missing or todo:
            about = cost.wall + len(todo) * check_seconds / min(executor.count, max(1, len(todo)))
            shown = f": about {duration(about)}" if missing else ""
            _say(
                f"{len(todo)} coordinate checks and {len(missing)} training runs, {len({r.result for r in runs}) - len(missing)} "
                f"known, on {executor.count} one-thread worker{'s' * (executor.count > 1)}{shown}"
            )
        for recipe, note in _check(setting, todo, executor, check_seconds).items():
            checks[recipe] = {**note, "key": _check_key(setting, data)}
            _say(f"coordinate check of {TITLES[recipe]}: {note['report']['verdict']}")
        make(runs, out, Options(command=command_line()), executor, cost, "training runs")
    with Store(out) as store:
        for recipe in RECIPES:
            store.note(f"check:{recipe}", checks[recipe])
    wanted = {run.key for run in runs}
    rows = [row for row in read_rows(out) if row["key"] in wanted]
    found = transfer_verdicts(rows, by="recipe", size="width")
    transfers = {recipe: found[recipe] for recipe in RECIPES}
    write_report(out, title="mutransfer quickstart")
    (out / "transfer.png").write_bytes(draw_curves({TITLES[name]: one for name, one in transfers.items()}))
    reports = {recipe: checks[recipe]["report"] for recipe in RECIPES}
    return Outcome(reports, transfers, setting, out, time.perf_counter() - start)


def _check_key(setting: Setting, data: TextData) -> str:
    """What decides a check's outcome."""
    from mutransfer import __version__

    names = [field.name for field in fields(setting) if field.name.startswith("check_")]
    names += ["context", "depth", "head_size", "init_std", "data"]
    return f"{[(name, getattr(setting, name)) for name in names]} {data.fingerprint} {__version__}"


def _known_checks(out: Path, setting: Setting, data: TextData) -> dict[str, dict[str, Any]]:
    from mutransfer.sweep.store import FILE, Store

    if not (out / FILE).is_file():
        return {}
    with Store(out, create=False) as store:
        notes = store.notes()
    found = {recipe: notes.get(f"check:{recipe}", {}) for recipe in RECIPES}
    return {recipe: note for recipe, note in found.items() if note.get("key") == _check_key(setting, data)}


def _check_seconds(setting: Setting, seconds: Mapping[str, float], missing: Mapping[str, Any]) -> float:
    """Seconds of one check, from those of the runs to be made."""
    by_width: dict[int, float] = {}
    for result, run in missing.items():
        by_width[run.config.model.width] = seconds[result] / run.config.steps
    near = {width: by_width[min(by_width, key=lambda w: abs(w - width))] for width in setting.check_widths}
    share = setting.check_rows / setting.batch
    return sum(near.values()) * _CHECK_COST * share * setting.check_steps * setting.check_seeds


def _check(setting: Setting, recipes: list[str], executor: Executor, seconds: float) -> dict[str, dict[str, Any]]:
    """The checks that are to be made, side by side."""
    if not recipes:
        return {}
    for recipe in recipes:
        executor.submit(recipe, check_recipe, setting, recipe)
    found: dict[str, dict[str, Any]] = {}
    shares = dict.fromkeys(recipes, 0.0)
    with Progress("coordinate checks", float(len(recipes)), seconds or None) as progress:
        while len(found) < len(recipes):
            for event in executor.events():
                if event.kind == "message":
                    before, shares[event.job] = shares[event.job], event.value["share"]
                    progress.advance(shares[event.job] - before, f"{TITLES[event.job]}: {event.value['text']}")
                elif event.kind == "done":
                    found[event.job] = event.value
                else:
                    raise event.value if isinstance(event.value, Exception) else RuntimeError(event.value)
    return {recipe: found[recipe] for recipe in recipes}


def _losses(verdict: Verdict) -> str:
    better = {True: "better", False: "worse", None: "no better"}[verdict.wider_is_better]
    return ", ".join(f"{found.loss.value:.3f}" for found in verdict.optima) + f": wider is {better}"


def _list(values: Any) -> str:
    return ", ".join(map(str, values))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
