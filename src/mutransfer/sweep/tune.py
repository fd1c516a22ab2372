"""Several hyperparameters at once: optuna's sampler at the smallest size, then the best of them at every size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mutransfer.errors import InputError
from mutransfer.sweep.adaptive import loss_of
from mutransfer.sweep.driver import Ask, Record, Search
from mutransfer.sweep.grid import SIZES
from mutransfer.sweep.points import with_fields_of
from mutransfer.sweep.wanted import Wanted

_CHECKED = (-1, 0, 1)  # octaves around the proxy's learning rate at which larger sizes are run


def tune(
    runs: Sequence[Wanted], metric: str, trials: int, together: int, note: Callable[[dict[str, Any]], None]
) -> Search:
    """The search, for `Driver.run`; the best hyperparameters are told to `note`.

    Every field that varies in the grid, other than a size and the seed, is tuned at the smallest size and the first
    seed: numbers between their smallest and largest value (in the logarithm where these are positive and a factor of 4
    or more apart), anything else among its values. `together` trials are asked for at a time, so that
    the result does not depend on which run ends first. Then every size and seed is run at the best values, and at half and twice its
    learning rate: whether it is the best there too is for the verdict to say.
    """
    optuna = _optuna()
    fields = [run.fields for run in runs]
    varying = [name for name in fields[0] if len({repr(f.get(name)) for f in fields}) > 1]
    tuned = {name: [f[name] for f in fields] for name in varying if name not in (*SIZES, "seed")}
    if not tuned:
        raise InputError("nothing to tune: add fields with several values to --grid, such as lr=2^-10..2^-4")
    order = sorted(range(len(runs)), key=lambda i: tuple(_number(fields[i].get(name)) for name in SIZES))
    proxy = runs[order[0]]
    space = {name: _distribution(optuna, values) for name, values in tuned.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0, constant_liar=True, n_startup_trials=max(5, trials // 4))
    )
    done = 0
    best: tuple[float, dict[str, Any]] = (math.inf, {})
    while done < trials:
        asked = [study.ask(space) for _ in range(min(max(1, together), trials - done))]
        records: Sequence[Record] = yield [Ask(with_fields_of(proxy, dict(trial.params))) for trial in asked]
        for trial, record in zip(asked, records, strict=True):
            loss = loss_of(record, metric)
            if math.isfinite(loss):
                study.tell(trial, loss)
                best = min(best, (loss, dict(trial.params)), key=lambda pair: pair[0])
            else:
                # a divergence is a bad result, not a missing one: the sampler must keep away from it
                study.tell(trial, 1e6)
        done += len(asked)
    if not best[1]:
        raise InputError(f"all {trials} trials diverged: lower the learning rates")
    note({"loss": best[0], "metric": metric, "trials": trials, "values": best[1]})
    wanted: dict[str, Wanted] = {}
    for i in order:
        sizes = {name: fields[i][name] for name in (*SIZES, "seed") if name in varying}
        for step in _CHECKED if "lr" in tuned else (0,):
            lr = {"lr": best[1]["lr"] * 2.0**step} if "lr" in tuned else {}
            run = with_fields_of(runs[i], {**best[1], **sizes, **lr})
            wanted[run.key] = run
    yield [Ask(run) for run in wanted.values()]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("--search optuna needs optuna: pip install 'mutransfer[optuna]'") from None
    return optuna


def _distribution(optuna: Any, values: Sequence[Any]) -> Any:
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not plain:
        return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        return optuna.distributions.IntDistribution(low, high, log=low > 0 and high >= 4 * low)
    return optuna.distributions.FloatDistribution(float(low), float(high), log=low > 0 and high >= 4 * low)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
