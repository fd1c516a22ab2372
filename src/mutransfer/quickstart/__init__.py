"""The main job end to end: does μP transfer here, and does the standard parametrization not?"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutransfer.commands.output import Progress, duration, require_folder
from mutransfer.errors import InputError
from mutransfer.quickstart import jobs
from mutransfer.quickstart.optimum import Transfer, optima
from mutransfer.quickstart.setting import RECIPES, TITLES, Setting
from mutransfer.quickstart.store import Store
from mutransfer.quickstart.workers import Job, Workers, available_cores

_CHECK_COST = 7.0  # a recorded step of the check against a plain training step of the same rows, measured
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Outcome:
    """The verdicts: one coordinate check and one transfer of each parametrization, and where the report is."""

    checks: dict[str, dict[str, Any]]
    transfers: dict[str, Transfer]
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
        lines += [
            f"  {TITLES[recipe]}: {transfer.status}; {transfer.words()}" for recipe, transfer in self.transfers.items()
        ]
        lines.append(self.conclusion())
        lines.append(f"report: {self.out / 'report.html'}  (took {duration(self.seconds)})")
        return "\n".join(lines)

    def conclusion(self) -> str:
        """What follows, in one sentence."""
        base, top = self.setting.widths[0], self.setting.widths[-1]
        if self.exit_code == 0:
            end = "it does not" if self.transfers["sp"].status == "DRIFTS" else "this run cannot tell them apart"
            return (
                f"With μP, tune at width {base} and train at width {top}: the learning rate transfers. "
                f"With the standard parametrization {end}."
            )
        if self.exit_code == 3:
            return "This run cannot tell whether μP transfers here; one run per point is thin evidence."
        return "μP does not hold here: look at the report, and file it as a bug with the report attached."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        checks = {
            name: {key: check[key] for key in ("verdict", "culprits", "words")} for name, check in self.checks.items()
        }
        transfers = {
            name: {"status": t.status, "words": t.words(), "optima": [asdict(o) for o in t.optima]}
            for name, t in self.transfers.items()
        }
        return {
            "exit_code": self.exit_code, "checks": checks, "transfer": transfers, "conclusion": self.conclusion(),
            "report": str(self.out / "report.html"), "seconds": self.seconds,
        }  # fmt: skip


def quickstart(out: Path, setting: Setting | None = None, workers: int | None = None) -> Outcome:
    """Run both coordinate checks and the grid of runs, write `report.html`, `transfer.png` and `runs.jsonl` into `out`.

    Runs found in `runs.jsonl` are not made again. Raises InputError when `out` cannot be written or the text is missing.
    """
    setting = setting or Setting()
    start = time.perf_counter()
    store = Store(require_folder(out) / "runs.jsonl")
    data = jobs.text(setting)
    keys = {point: _key(setting, point, data) for point in setting.points()}
    missing = [point for point, key in keys.items() if key not in store.rows]
    count = workers or max(1, min(_MOST_WORKERS, available_cores(), len(missing) + len(RECIPES)))
    _say(
        f"GPTs of width {_list(sorted({*setting.widths, *setting.check_widths}))} on {len(data.train):,} characters of "
        f"the Python language reference; {count} one-thread worker{'s' * (count > 1)}"
    )
    with Workers(count) as pool:
        costs = _costs(setting, pool, missing)
        known = f", {len(keys) - len(missing)} known" if len(missing) < len(keys) else ""
        about = f": about {duration(sum(costs.values()) / count)}" if missing else ""
        _say(f"2 coordinate checks and {len(missing)} training runs{known}{about}")
        checks = _work(setting, pool, costs, keys, store)
    curves = _curves(setting, keys, store)
    transfers = {name: Transfer(tuple(optima(widths)), setting.widths) for name, widths in curves.items()}
    outcome = Outcome({name: checks[name][0] for name in RECIPES}, transfers, setting, out, time.perf_counter() - start)
    _write(outcome, checks, curves, count, data.fingerprint)
    return outcome


Point = tuple[str, int, int]


def _key(setting: Setting, point: Point, data: Any) -> str:
    """What decides a run's result: its config, the text, and the version of the code."""
    from mutransfer import __version__

    return f"{setting.run(*point, data.vocab_size).hash()[:24]}-{data.fingerprint}-{__version__}"


def _costs(setting: Setting, pool: Workers, missing: list[Point]) -> dict[Point | str, float]:
    """Seconds of one worker for every run and check, longest first, from a few steps timed in all workers at once."""
    if not missing:
        return dict.fromkeys(RECIPES, 1.0)
    timed = pool.each((jobs.step_seconds, (setting,)))
    step = {width: max(found[width] for found in timed) for width in timed[0]}
    share = setting.check_rows / setting.batch
    check = sum(step[w] * _CHECK_COST * share * setting.check_steps * setting.check_seeds for w in setting.check_widths)
    costs: dict[Point | str, float] = {point: step[point[1]] * setting.steps for point in missing}
    costs.update(dict.fromkeys(RECIPES, check))
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def _work(
    setting: Setting, pool: Workers, costs: dict[Point | str, float], keys: dict[Point, str], store: Store
) -> dict[str, Any]:
    """Every check and every missing run; each run is stored as it ends. Returns the checks."""
    tasks = list(costs)
    todo: list[Job] = [
        (jobs.check_recipe, (setting, task)) if isinstance(task, str) else (jobs.train_point, (setting, *task))
        for task in tasks
    ]
    checks = {}
    timed = len(costs) > len(RECIPES)  # without a run to make, nothing was timed
    expected = sum(costs.values()) / pool.count if timed else None
    with Progress("quickstart", sum(costs.values()), expected) as progress:
        for index, result in pool.run(todo):
            task = tasks[index]
            if isinstance(task, str):
                checks[task] = result
                said = f"check of {TITLES[task]}: {result[0]['verdict']}"
            else:
                store.add(keys[task], result)
                loss = "diverged" if result["loss"] is None else f"loss {result['loss']:.3f}"
                said = f"{TITLES[task[0]]}, width {task[1]}, learning rate 2^{task[2]}: {loss}"
            progress.advance(costs[task], said)
    return {recipe: checks[recipe] for recipe in RECIPES}


def _curves(setting: Setting, keys: dict[Point, str], store: Store) -> dict[str, dict[int, dict[int, float]]]:
    """recipe → width → log2 LR → loss (inf where the run diverged); the base's curve belongs to both."""
    curves: dict[str, dict[int, dict[int, float]]] = {}
    for recipe in RECIPES:
        for width in setting.widths:
            owner = "sp" if width == setting.base else recipe
            losses = {lr: store.rows[keys[owner, width, lr]]["loss"] for lr in setting.log2_lrs}
            curves.setdefault(recipe, {})[width] = {lr: math.inf if v is None else v for lr, v in losses.items()}
    if all(math.isinf(v) for v in curves["sp"][setting.base].values()):
        raise InputError(f"every run at the base width {setting.base} diverged: nothing can be compared")
    return curves


def _write(outcome: Outcome, checks: dict[str, Any], curves: dict[str, Any], workers: int, fingerprint: str) -> None:
    from mutransfer.files import write_atomic
    from mutransfer.quickstart.page import sections
    from mutransfer.quickstart.picture import draw
    from mutransfer.report import Provenance, write_page

    picture = draw(curves, outcome.transfers)
    outcome.out.mkdir(parents=True, exist_ok=True)
    write_atomic(outcome.out / "transfer.png", lambda file: file.write(picture))
    facts = Provenance.now(
        "mutransfer quickstart", workers=f"{workers}, one thread each", seed=str(outcome.setting.seed), text=fingerprint
    )
    write_page(outcome.out / "report.html", "mutransfer quickstart", sections(outcome, checks, curves, picture), facts)


def _list(values: Any) -> str:
    return ", ".join(map(str, values))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
