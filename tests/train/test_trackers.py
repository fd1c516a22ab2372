"""Trackers: many runs of one process at once, no account, and nothing that a tracker does ends a run."""

import json
import math
import sqlite3
import struct
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mutransfer.cli import main
from mutransfer.errors import InputError
from mutransfer.train.trackers import TRACKERS, open_tracker
from tests.train.runs import gpt_run

CONFIG = gpt_run().to_dict()
SUMMARY = {"status": "finished", "train_loss": 1.5, "val_loss": math.inf, "reason": None}
MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}


class Recorder:
    """Stands for a run of any of the packages: keeps what it is told."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.args, self.options = args, options
        self.points: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}
        self.ended: Any = None

    def log(self, point: dict[str, Any], step: int) -> None:
        self.points.setdefault(step, {}).update(point)

    def finish(self, exit_code: int = 0) -> None:
        self.ended = exit_code

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.log({name: value}, step)

    def add_text(self, name: str, text: str, step: int) -> None:
        self.text = text

    def add_hparams(self, hparams: dict[str, Any], metrics: dict[str, float], run_name: str) -> None:
        self.summary.update({"hparams": hparams, **metrics})

    def close(self) -> None:
        self.ended = 0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """The runs opened in packages that are replaced by recorders; nobody is logged in."""
    opened: list[Recorder] = []

    def init(*args: Any, **options: Any) -> Recorder:
        opened.append(Recorder(*args, **options))
        return opened[-1]

    for name in MODULES.values():
        module: Any = types.ModuleType(name)
        module.init = module.SummaryWriter = init
        module.Settings = dict
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "no-such-file")
    return opened


def track(name: str, folder: Path) -> None:
    """Three runs open at once, each with its own losses, logged in turns."""
    tracker = open_tracker(name, "project", folder)
    runs = [tracker.start(f"run{i}", CONFIG) for i in range(3)]
    for step in (1, 5, 9):
        for i, run in enumerate(runs):
            run.log({"step": step, "loss": 10.0 * i + step, "val_loss": None, "grad_norm": math.nan}, step)
    for run in runs:
        run.finish("finished", SUMMARY)
        run.log({"loss": 0.0}, 10)  # too late, and no matter
        run.finish("finished", SUMMARY)


@pytest.mark.parametrize("name", TRACKERS)
def test_runs_of_one_process_do_not_mix(name: str, made: list[Recorder], tmp_path: Path) -> None:
    track(name, tmp_path)
    assert len(made) == 3
    for i, run in enumerate(made):
        logged = {step: point["loss"] for step, point in run.points.items()}
        assert logged == {1: 10.0 * i + 1, 5: 10.0 * i + 5, 9: 10.0 * i + 9}
        assert all("val_loss" not in point and "step" not in point for point in run.points.values())
        assert run.ended == 0


def test_each_package_gets_its_own_terms(made: list[Recorder], tmp_path: Path) -> None:
    for name in TRACKERS:
        run = open_tracker(name, "project", tmp_path).start("a", CONFIG)
        run.log({"loss": 2.0}, 3)
        run.finish("diverged", SUMMARY)
    board, trackio, wandb = made
    assert board.args == (str(tmp_path / "tensorboard" / "a"),) and board.options == {"purge_step": 3}
    assert board.summary["hparams"]["model.width"] == 32 and board.summary["hparams"]["status"] == "diverged"
    assert board.summary["final/train_loss"] == 1.5 and json.loads(board.text.strip("`\n")) == CONFIG
    assert (trackio.options["project"], trackio.options["name"]) == ("project", "a")
    assert trackio.points[3] == {"loss": 2.0, "final/train_loss": 1.5, "final/val_loss": math.inf,
                                 "final/status": "diverged"}  # fmt: skip
    assert wandb.options["reinit"] == "create_new" and wandb.options["dir"] == str(tmp_path)
    assert wandb.summary == {**SUMMARY, "status": "diverged"} and wandb.ended == 1


@pytest.mark.parametrize(("settings", "mode"), [
    ({}, "offline"), ({"WANDB_MODE": "online"}, "offline"), ({"WANDB_MODE": "disabled"}, "disabled"),
    ({"WANDB_API_KEY": "k"}, None), ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None),
    ({"NETRC": "known"}, None), ({"NETRC": "known", "WANDB_BASE_URL": "https://own.example"}, "offline"),
])  # fmt: skip
def test_wandb_never_asks_for_an_account(
    settings: dict[str, str], mode: str | None, made: list[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "known").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.chdir(tmp_path)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    open_tracker("wandb", "project", tmp_path).start("a", CONFIG)
    assert made[0].options["mode"] == mode  # None leaves it to the user's own settings


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_a_tracker_that_fails_warns_once_and_ends_nothing(
    name: str, when: str, made: list[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError("no space left")

    if when == "init":
        for method in ("init", "SummaryWriter"):
            monkeypatch.setattr(sys.modules[MODULES[name]], method, fail)
    for method in {"init": (), "log": ("log", "add_scalar"), "finish": ("finish", "close")}[when]:
        monkeypatch.setattr(Recorder, method, fail)
    with pytest.warns(UserWarning, match=rf"{name} failed .* training goes on \(OSError: no space left\)") as caught:
        track(name, tmp_path)
    assert len(caught) == 1


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_one_clear_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(
        InputError, match=rf"^tracker '{name}' is not installed: run pip install 'mutransfer\[{name}\]'$"
    ):
        open_tracker(name, "project", Path())


def test_another_name_is_one_clear_line_and_none_tracks_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tracker 'mlflow' is unknown: write one of tensorboard, trackio, wandb"):
        open_tracker("mlflow", "project", tmp_path)
    run = open_tracker(None, "project", tmp_path).start("a", CONFIG)
    run.log({"loss": 1.0}, 1)
    run.finish("finished", SUMMARY)
    assert not list(tmp_path.iterdir())


def test_the_train_command_tracks_by_one_flag(made: list[Recorder], tmp_path: Path) -> None:
    line = f"train mlp --set steps=4 warmup=1 batch=8 log_every=2 --out {tmp_path / 'a'} --tracker wandb --json"
    assert main(line.split()) == 0
    assert sorted(made[0].points) == [1, 2, 4] and made[0].points[4]["val_loss"] > 0
    assert made[0].summary["status"] == "finished" and made[0].options["config"]["steps"] == 4
    assert made[0].options["name"] == "a" and made[0].ended == 0
    assert main(line.split()) == 0 and len(made) == 1  # nothing was trained, so nothing is tracked again


# ------------------------------------------------------------------------------------------------ the real packages


@pytest.fixture
def lenient() -> Iterator[None]:
    """Other people's packages may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


EXPECTED = {f"run{i}": [(step, 10.0 * i + step) for step in (1, 5, 9)] for i in range(3)}


@pytest.mark.usefixtures("lenient")
def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    events: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    track("tensorboard", tmp_path)
    found = {}
    for folder in (tmp_path / "tensorboard").iterdir():
        reader = events.EventAccumulator(str(folder))
        reader.Reload()
        found[folder.name] = [(event.step, event.value) for event in reader.Scalars("loss")]
        assert reader.Scalars("final/train_loss")[0].value == 1.5
    assert found == EXPECTED


@pytest.mark.usefixtures("lenient")
def test_trackio_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    track("trackio", tmp_path)
    assert capsys.readouterr().out == ""
    database = sqlite3.connect(tmp_path / "project.db")
    rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    database.close()
    found: dict[str, list[tuple[int, float]]] = {}
    for run, step, metrics in rows:
        if "loss" in (point := json.loads(metrics)):
            found.setdefault(run, []).append((step, point["loss"]))
    assert found == EXPECTED


def _wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline run's file: a 7-byte header, then pieces of records in blocks of 32 kB."""
    raw, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, at)
        record += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


def _wandb_losses(folder: Path, messages: Any) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of every run found under `folder`."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        name, points = "", []
        for raw in _wandb_records(path):
            record = messages.Record()
            record.ParseFromString(raw)
            name = record.run.display_name or name
            point = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if "loss" in point:
                points.append((int(point["_step"]), float(point["loss"])))
        found[name] = points
    return found


@pytest.mark.usefixtures("lenient")
def test_wandb_keeps_what_was_written_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    messages: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    track("wandb", tmp_path)
    deadline = time.monotonic() + 20
    while (found := _wandb_losses(tmp_path, messages)) != EXPECTED and time.monotonic() < deadline:
        time.sleep(0.1)  # a process of W&B's own writes the files
    assert found == EXPECTED and capfd.readouterr().out == ""
