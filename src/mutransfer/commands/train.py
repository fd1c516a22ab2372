"""`mutransfer train`: one run from a frozen config, with a live line; the same command continues it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.train import RunConfig, RunResult

FAILED, BAD_INPUT = 1, 2


@dataclass(frozen=True)
class Train:
    """One training run. An interrupted run continues exactly when the same command is given again.

    Examples:
      mutransfer train experiments.py:config --out runs/a
      mutransfer train gpt --set width=128 base.width=32 depth=2 head_size=16 context=64 lr=0.01 steps=300 --out runs/b
      torchrun --nproc-per-node 2 -m mutransfer.cli train experiments.py:config --out runs/a
    """

    summary: ClassVar[str] = "one training run, continued by the same command"

    config: Annotated[Positional[str], arg(metavar="CONFIG")]
    """A function without arguments that returns a RunConfig, as package.module:name or file.py:name; or gpt, mlp, resnet."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Checkpoint and result go there."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Fields of RunConfig or of its model, such as lr=0.01 width=128 recipe=mup; base.width=32 names the base's width."""
    fresh: bool = False
    """Start over instead of continuing the run that is there."""
    ranks: int = 1
    """Processes that share the run, one device each: the same run to rounding. Batch norm cannot be shared."""
    tracker: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Log the run there too; W&B works offline, under FOLDER, where there is no account."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Train and say how it ended. Returns 0 for a finished run, 1 for one that diverged."""
        from mutransfer.commands.output import require_folder
        from mutransfer.train.ranks import RankDied, leave, rank_of_torchrun

        rank = rank_of_torchrun()
        if rank is not None and self.ranks != 1:
            raise InputError(f"--ranks {self.ranks} under torchrun, which started the ranks: leave out --ranks")
        if self.ranks < 1:
            raise InputError(f"--ranks {self.ranks}: write a whole number of processes, 1 or more")
        require_folder(self.out)
        try:
            result = self._train(self._config()) if not rank else self._follow()
        except InputError:
            if rank:
                return BAD_INPUT  # rank 0 says it
            raise
        except RankDied as error:
            print(f"mutransfer: {error}", file=sys.stderr)
            return FAILED
        code = 0 if result.status == "finished" else FAILED
        leave(code)
        return code

    def _follow(self) -> RunResult:
        """What the ranks but the first do under torchrun: the same run, without a word."""
        from mutransfer.train import train

        return train(self._config(), folder=self.out, resume=not self.fresh)

    def _train(self, config: RunConfig) -> RunResult:
        """Train, showing and tracking how it goes, and say how it ended."""
        from mutransfer.commands.output import Progress, show_json
        from mutransfer.train import LogPoint, launch, train
        from mutransfer.train.checkpoint import RESULT
        from mutransfer.train.trackers import open_tracker

        tracker = open_tracker(self.tracker, "mutransfer", self.out)
        if not self.fresh and (self.out / RESULT).exists():  # it has ended, and was tracked then
            tracker = open_tracker(None, "mutransfer", self.out)
        with Progress(self._label(config), config.steps) as progress:
            tracked = tracker.start(self.out.absolute().name, config.to_dict())

            def log(point: LogPoint) -> None:
                if progress.done == 0 and point.step > 1:  # continued: the first update is always logged
                    progress.skip(point.step)
                held = "" if point.val_loss is None else f", validation {point.val_loss:.4f}"
                progress.advance(point.step - progress.done, f"step {point.step} loss {point.loss:.4f}{held}")
                tracked.log(asdict(point), point.step)

            try:
                if self.ranks == 1:
                    result = train(config, folder=self.out, resume=not self.fresh, on_log=log)
                else:
                    result = launch(config, self.ranks, self.out, resume=not self.fresh, on_log=log)
            except BaseException:
                tracked.finish("failed", {})
                raise
            tracked.finish(result.status, result.summary())
        if self.json:
            show_json({"folder": self.out, "config": config.to_dict(), **result.to_dict()})
        else:
            print(self._words(result))
        return result

    def _label(self, config: RunConfig) -> str:
        return f"{config.model_kind} {config.recipe}"

    def _words(self, result: RunResult) -> str:
        if result.status == "diverged":
            return f"DIVERGED: {result.reason}; recorded in {self.out}"
        held = "" if result.val_loss is None else f", validation loss {result.val_loss:.4f}"
        return (
            f"finished: {result.params:,} parameters, {len(result.losses)} updates, "
            f"training loss {result.train_loss:.4f} (mean of the last {min(50, len(result.losses))}){held}; in {self.out}"
        )

    def _config(self) -> RunConfig:
        from mutransfer.commands.builtin import MODELS, described
        from mutransfer.commands.user_code import find_function, pairs
        from mutransfer.sweep.grid import with_fields
        from mutransfer.train import RunConfig

        given = pairs(self.set, "--set")
        if self.config in MODELS:
            return RunConfig.from_dict(described(self.config, given))
        made = find_function(self.config, "function config() -> RunConfig", MODELS)()
        if not isinstance(made, RunConfig):
            raise InputError(f"{self.config}() returned a {type(made).__name__}: return a mutransfer.train.RunConfig")
        return RunConfig.from_dict(with_fields(made.to_dict(), given))
