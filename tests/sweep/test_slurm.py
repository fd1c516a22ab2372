"""Slurm jobs through submitit, on its local cluster."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from mutransfer.errors import InputError
from mutransfer.sweep.executor import Event
from mutransfer.sweep.slurm import Slurm
from tests.sweep.small import gone, tell, wrong

pytest.importorskip("submitit")
LOCAL = ("cluster=local", "time=5")


def test_killed_job_is_lost_with_a_reason_and_errors_travel(tmp_path: Path) -> None:
    events: list[Event] = []
    with Slurm(tmp_path, 2, LOCAL) as executor:
        executor.submit("long", tell, 1, 600.0)
        executor.submit("bad", wrong)
        while sum(event.kind != "message" for event in events) < 2:
            events += executor.events()
            for event in events:
                if event.kind == "message" and not gone(event.value["pid"], 0):
                    os.kill(event.value["pid"], signal.SIGKILL)
        assert executor.events() == []
    ends = {event.job: event for event in events if event.kind != "message"}
    assert ends["long"].kind == "lost" and "ended without an answer" in ends["long"].value
    assert ends["bad"].kind == "error" and str(ends["bad"].value) == "ZeroDivisionError: no number"
    assert list((tmp_path / "slurm").iterdir()) == []


_PARENT = """
import sys
from functools import partial
from pathlib import Path
from mutransfer.sweep.slurm import Slurm
from tests.sweep.small import tell
executor = Slurm(Path(sys.argv[1]), 1, ("cluster=local", "time=5"))
executor.submit("a", tell, 2, 1.5)
print(executor.events(), flush=True)
executor.events(600)
executor.events(600)
"""


def test_job_of_a_killed_sweep_is_waited_for_and_not_submitted_again(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=pipe, env=environment) as parent:
        assert parent.stdout is not None and b"'i': 0" in parent.stdout.readline()
        parent.send_signal(signal.SIGKILL)
    with Slurm(tmp_path, 1, LOCAL) as executor:
        executor.submit("a", tell, 2, 1.5)
        events = executor.events()
        pid = events[0].value["pid"]
        while events[-1].kind == "message":
            events += executor.events()
    assert events[-1].kind == "done" and events[-1].value["pid"] == pid
    assert [event.value["i"] for event in events[:-1]] == [0, 1]
    assert gone(pid)


def test_close_cancels(tmp_path: Path) -> None:
    with Slurm(tmp_path, 1, LOCAL) as executor:
        executor.submit("long", tell, 1, 600.0)
        (event,) = executor.events()
    assert gone(event.value["pid"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cluster=local", "partition"), "write name=value"),
        (("cluster=local", "colour=red"), "colour"),
        (("cluster=local", "time=1:00:00"), "whole minutes"),
        (("cluster=local", "nodes=2"), "--workers"),
        ((), "no Slurm here"),
    ],
)
def test_wrong_parameters_are_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as error:
        Slurm(tmp_path, None, words)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [] or "colour" in said


def _out_of_time(stopped: type[Exception], send: object) -> None:
    """What submitit's signal at the end of a job's time does to a user's function, whose errors are quoted."""
    try:
        raise stopped("Job not requeued because: timed-out and not checkpointable.")
    except stopped as error:
        raise InputError(f"run(lr=0.1) raised {error}") from error


def test_end_of_a_jobs_time_is_no_error_of_its_run() -> None:
    from submitit.core.utils import UncompletedJobError

    from mutransfer.sweep.executor import answer
    from mutransfer.sweep.slurm import _Stopped, _unless_stopped

    with pytest.raises(_Stopped, match="timed-out"):
        answer(partial(_unless_stopped, UncompletedJobError, _out_of_time), (UncompletedJobError,), print)
    kind, error = answer(partial(_unless_stopped, UncompletedJobError, wrong), (), print)
    assert kind == "error" and "ZeroDivisionError" in str(error)
