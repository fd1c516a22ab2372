"""`mutransfer sweep`: a grid or a search of runs, of which only the missing ones are made."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.sweep import Wanted


@dataclass(frozen=True)
class Sweep:
    """Many runs, each made once: the same command goes on after any interruption and adds what is missing.

    Rows go to runs.sqlite in the folder; see mutransfer verdict, report and export. Where no base is named, the smallest width
    and depth of the grid are the base.

    Examples:
      mutransfer sweep gpt --grid recipe=sp,mup width=32,64,128,256 lr=2^-9..2^-5 seed=0,1 --set head_size=16 context=64 --out runs
      mutransfer sweep my_project.train:run --grid width=256,512 lr=2^-12..2^-6/2 --search adaptive --out runs
    """

    summary: ClassVar[str] = "many runs over width, depth, learning rate, seed, recipe; only the missing ones are made"

    config: Annotated[Positional[str], arg(metavar="CONFIG")]
    """A function config() that returns a RunConfig, or your own run(width, lr, seed, ...) that trains and returns the loss, as package.module:name or file.py:name; or gpt, mlp, resnet."""
    grid: Annotated[tuple[str, ...], arg(metavar="NAME=VALUES ...")]
    """Values of every field that varies: width=32,64 lr=2^-12..2^-4 (powers of two; /2 for steps of √2) seed=0..2 recipe=sp,mup."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """The store of runs goes there."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Fields that are the same in every run, such as depth=2 steps=300; base.width=32 names the base's width."""
    search: Annotated[str, arg(metavar="KIND")] = "grid"
    """grid (all of it), adaptive (few runs: from coarse to fine around the optimum that smaller sizes predict) or optuna."""
    executor: Annotated[str, arg(metavar="KIND")] = "local"
    """local, ray or slurm."""
    slurm: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Parameters of the Slurm jobs, such as partition=gpu time=60 (minutes) gpus_per_node=1."""
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Runs at once; by default one per core."""
    ranks: Annotated[int, arg(metavar="N")] = 1
    """Devices of each run, by torchrun and DDP."""
    metric: Annotated[str, arg(metavar="NAME")] = ""
    """What a search minimises: train_loss (the mean of the last 50 updates; the default), val_loss, mean_loss, best_val_loss; of your own function, loss."""
    trials: Annotated[int, arg(metavar="N")] = 30
    """Runs of the optuna search at the smallest size."""
    tracker: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Log every run to tensorboard, trackio or wandb (offline without a login)."""
    limit: Annotated[float, arg(metavar="MINUTES")] = 10.0
    """Ask before starting what takes longer."""
    yes: bool = False
    """Do not ask."""
    keep: bool = False
    """Keep the checkpoints of ended runs."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        """Make what is missing. Returns 0 when every run has a result (a divergence is one), 1 when runs failed."""
        from mutransfer.commands.output import require_folder, show_json
        from mutransfer.sweep import Store, complete

        folder = require_folder(self.out)
        asked = complete.request(self)
        records = complete.answer(folder, asked)
        if records is None:
            records = self._make(folder)
            with Store(folder) as store:
                complete.remember(store, asked, [record["key"] for record in records])
        if self.json:
            from mutransfer.sweep.store import flat_row

            show_json([flat_row(record) for record in records])
        else:
            print(self._words(records))
        return 1 if any(record["status"] == "failed" for record in records) else 0

    def _make(self, folder: Path) -> list[Any]:
        from mutransfer.commands.output import command_line
        from mutransfer.sweep import Options, sweep
        from mutransfer.train import RunConfig

        wanted = self.wanted()
        metric = self.metric or ("train_loss" if isinstance(wanted[0].config, RunConfig) else "loss")
        options = Options(
            executor=self.executor, workers=self.workers, ranks=self.ranks, limit=60 * self.limit, yes=self.yes,
            keep=self.keep, tracker=self.tracker, search=self.search, metric=metric, trials=self.trials,
            command=command_line(), slurm=self.slurm,
        )  # fmt: skip
        return sweep(wanted, folder, options)

    def wanted(self) -> list[Wanted]:
        """Every run of the grid."""
        from mutransfer.commands.builtin import MODELS, described
        from mutransfer.commands.user_code import find_function, pairs
        from mutransfer.sweep import Wanted, grid_configs
        from mutransfer.sweep.grid import axes_of, with_fields
        from mutransfer.train import RunConfig

        axes, given = axes_of(self.grid), pairs(self.set, "--set")
        both = [name for name in axes if name in given]
        if both:
            raise InputError(f"{both[0]} is in --grid and in --set: write it once")
        if self.config in MODELS:
            return [Wanted.of(config) for config in grid_configs(described(self.config, given, axes), axes)]
        function = find_function(
            self.config, "function config() -> RunConfig, or run(width, lr, seed, ...) -> loss", MODELS
        )
        if inspect.signature(function).parameters:
            return self._calls(function, axes, given)
        made = function()
        if not isinstance(made, RunConfig):
            raise InputError(f"{self.config}() returned a {type(made).__name__}: return a mutransfer.train.RunConfig")
        return [Wanted.of(config) for config in grid_configs(with_fields(made.to_dict(), given), axes)]

    def _calls(self, function: Any, axes: dict[str, list[Any]], given: dict[str, Any]) -> list[Wanted]:
        """The user's own training function at every point, whose parameters must be the fields."""
        from mutransfer.sweep import Call, Wanted
        from mutransfer.sweep.grid import expand, require_numbers

        require_numbers(axes, "--grid")
        require_numbers({name: [value] for name, value in given.items()}, "--set")
        parameters = inspect.signature(function).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in (*axes, *given):
            if name not in parameters and not takes_all:
                raise InputError(f"{self.config} takes no {name!r}: its parameters are {', '.join(parameters)}")
        for name, parameter in parameters.items():
            plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if plain and parameter.default is parameter.empty and name not in (*axes, *given, "report", "folder"):
                raise InputError(f"{self.config} needs {name!r}: add it to --grid, or --set {name}=...")
        return [Wanted.of(Call(self.config, str(Path.cwd()), {**given, **point})) for point in expand(axes)]

    def _words(self, records: list[Any]) -> str:
        from mutransfer.sweep import Store

        counts: dict[str, int] = {}
        for record in records:
            counts[record["status"]] = counts.get(record["status"], 0) + 1
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        text = f"{len(records)} runs in {self.out}: {said}"
        if self.search == "optuna":
            with Store(self.out) as store:
                tuned = store.notes()["tuned"]
            values = tuned["values"].items()
            best = ", ".join(f"{name}={v:.4g}" if isinstance(v, float) else f"{name}={v}" for name, v in values)
            text = f"best of {tuned['trials']} trials at the smallest size: {best} ({tuned['metric']} {tuned['loss']:.4f})\n{text}"
        return f"{text}\nnext: mutransfer verdict {self.out}; mutransfer report {self.out}"
