"""Experiment trackers by one word: TensorBoard, trackio, Weights & Biases; several runs of one process at a time.

All of them work without an account and without a network. A tracker that fails says so once, and training goes on.
"""

import contextlib
import contextvars
import importlib
import io
import json
import netrc
import os
import urllib.parse
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mutransfer.errors import InputError

TRACKERS = ("tensorboard", "trackio", "wandb")


class _Log(Protocol):
    """One run in a tracker's own terms; any method may raise anything."""

    def log(self, point: dict[str, float], step: int) -> None: ...

    def finish(self, status: str, summary: dict[str, Any]) -> None: ...


class TrackedRun:
    """One run in a tracker; many may be open at once. Never raises: after a failure it is silent."""

    def __init__(self, run: _Log | None, failed: Callable[[Exception], None]) -> None:
        self._run, self._failed = run, failed

    def log(self, point: Mapping[str, Any], step: int) -> None:
        """Log the numbers of a point (a `LogPoint` as a dict) under their names; what is None or text is left out."""
        numbers = {name: float(value) for name, value in point.items() if name != "step" and _number(value)}
        self._do(lambda run: run.log(numbers, step))

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Close the run with how it ended ("finished", "diverged", "paused", "failed") and the numbers of its outcome."""
        self._do(lambda run: run.finish(status, dict(summary)))
        self._run = None

    def _do(self, action: Callable[[_Log], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._run = None
            self._failed(error)


class Tracker:
    """A place for the runs of one project. `open` starts one in the tracker's terms; None tracks nothing."""

    def __init__(self, name: str | None, open: Callable[[str, dict[str, Any]], _Log] | None) -> None:
        self.name, self._open, self._warned = name, open, False

    def start(self, run_name: str, config: Mapping[str, Any]) -> TrackedRun:
        """Open a run with its config (`RunConfig.to_dict`); a continued run is opened again under the same name."""
        if self._open is None:
            return TrackedRun(None, self._fail)
        try:
            return TrackedRun(self._open(run_name, dict(config)), self._fail)
        except Exception as error:
            self._fail(error)
            return TrackedRun(None, self._fail)

    def _fail(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            warnings.warn(f"{self.name} failed and does not log all runs; training goes on ({said})", stacklevel=4)


def open_tracker(name: str | None, project: str, folder: Path) -> Tracker:
    """The tracker of that name ("tensorboard", "trackio", "wandb"); None for one that tracks nothing.

    TensorBoard and W&B write under `folder`. W&B is offline unless it is logged in (`WANDB_MODE` is respected) and never
    asks; trackio writes where its dashboard looks (`TRACKIO_DIR`).
    Raises `InputError` for another name or a package that is not installed.
    """
    if name is None:
        return Tracker(None, None)
    if name not in TRACKERS:
        raise InputError(f"tracker {name!r} is unknown: write one of {', '.join(TRACKERS)}")
    try:
        package: Any = importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError:
        raise InputError(f"tracker {name!r} is not installed: run pip install 'mutransfer[{name}]'") from None
    folder = Path(folder)
    if name == "tensorboard":
        return Tracker(name, lambda run, config: _TensorBoard(package, folder / "tensorboard" / run, config))
    if name == "trackio":
        return Tracker(name, lambda run, config: _Trackio(package, project, run, config))
    return Tracker(name, lambda run, config: _Wandb(package, project, folder, run, config))


class _TensorBoard:
    """Event files in a folder of the run's own; scalars by step, and a row of the HPARAMS table at the end."""

    def __init__(self, package: Any, folder: Path, config: dict[str, Any]) -> None:
        self.package, self.folder, self.config = package, folder, config
        self.writer: Any = None

    def log(self, point: dict[str, float], step: int) -> None:
        if self.writer is None:
            # what an interrupted session logged from this step on is superseded
            self.writer = self.package.SummaryWriter(str(self.folder), purge_step=step)
            self.writer.add_text("config", f"```\n{json.dumps(self.config, indent=1)}\n```", step)
        for name, value in point.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        if self.writer is None:
            return
        plain = {name: value if isinstance(value, int | float | str | bool) else str(value)
                 for name, value in _flat(self.config).items()}  # fmt: skip
        outcome = {f"final/{name}": float(value) for name, value in summary.items() if _number(value)}
        self.writer.add_hparams({**plain, "status": status}, outcome, run_name=".")
        self.writer.close()


class _Trackio:
    """trackio keeps its current run in a context variable: with a context each, runs do not end one another."""

    def __init__(self, package: Any, project: str, name: str, config: dict[str, Any]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it greets on standard output, which belongs to the command
            self.run: Any = contextvars.Context().run(
                package.init, project=project, name=name, config=_flat(config), embed=False,
                auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

    def log(self, point: dict[str, float], step: int) -> None:
        self.last = step
        self.run.log(point, step=step)

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        final = {f"final/{name}": value for name, value in summary.items() if _number(value)}
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.log({**final, "final/status": status}, step=getattr(self, "last", 0))
            self.run.finish()


class _Wandb:
    """A W&B run beside others of the same process."""

    def __init__(self, package: Any, project: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run: Any = package.init(
            project=project, name=name, config=config, dir=str(folder), mode=_wandb_mode(), reinit="create_new",
            settings=package.Settings(silent=True, console="off"),
        )  # fmt: skip

    def log(self, point: dict[str, float], step: int) -> None:
        self.run.log(point, step=step)

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        self.run.summary.update({**summary, "status": status})
        self.run.finish(exit_code=0 if status in ("finished", "paused") else 1)


def _wandb_mode() -> str | None:
    """W&B's own choice where there is an account to log in with; else offline, or off when the user says so."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return "disabled"
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    return None if known or os.environ.get("WANDB_API_KEY") else "offline"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names: model.width."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat
