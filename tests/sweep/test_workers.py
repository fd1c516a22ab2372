"""Local workers: warm, one thread each, replaced when they die, gone when their parent is."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mutransfer.errors import InputError
from mutransfer.sweep.executor import Event
from mutransfer.sweep.workers import Workers
from tests.sweep.small import gone, tell, wrong


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two processes for the whole file."""
    with Workers(2) as executor:
        yield executor


def run(executor: Any, count: int) -> dict[str, Event]:
    """The last event of each job, until so many are over."""
    over: dict[str, Event] = {}
    while len(over) < count:
        over |= {event.job: event for event in executor.events() if event.kind != "message"}
    return over


def test_jobs_share_warm_processes_of_one_thread(workers: Workers) -> None:
    for i in range(6):
        workers.submit(f"{i}", tell, 1, 0.05)
    found = run(workers, 6)
    assert {event.kind for event in found.values()} == {"done"}
    assert {event.value["pid"] for event in found.values()} == set(workers.pids) and len(workers.pids) == 2
    assert {event.value["threads"] for event in found.values()} == {1}
    assert workers.events() == []


def test_messages_come_in_order_and_before_the_end(workers: Workers) -> None:
    workers.submit("a", tell, 20, 0.0)
    events: list[Event] = []
    while not events or events[-1].kind == "message":
        events += workers.events()
    assert [event.value["i"] for event in events[:-1]] == list(range(20)) and events[-1].kind == "done"


def test_error_of_a_job_leaves_its_worker_alive(workers: Workers, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(workers.pids)
    workers.submit("bad", wrong)
    event = run(workers, 1)["bad"]
    assert event.kind == "error" and str(event.value) == "ZeroDivisionError: no number"
    assert set(workers.pids) == before
    assert "a word" not in capfd.readouterr().out  # stdout is the sweep's own


def test_killed_worker_loses_one_job_and_is_replaced(workers: Workers) -> None:
    workers.submit("a", tell, 100, 0.02)
    workers.submit("b", tell, 3, 0.02)
    events: list[Event] = []
    while not any(event.job == "a" for event in events):
        events += workers.events()
    pid = next(event.value["pid"] for event in events if event.job == "a")
    os.kill(pid, signal.SIGKILL)
    while not any(event.kind == "lost" for event in events):
        events += workers.events()
    (lost,) = (event for event in events if event.kind == "lost")
    assert lost.job == "a" and "signal 9" in lost.value and "memory" in lost.value
    assert pid not in workers.pids
    workers.submit("a", tell, 1, 0.0)
    count = 2 - sum(event.kind == "done" for event in events)
    assert run(workers, count)["a"].kind == "done"


def test_close_stops_what_is_under_way() -> None:
    with Workers(1) as executor:
        executor.submit("long", tell, 1, 600.0)
        executor.submit("waiting", tell, 1, 0.0)
        assert executor.events()[0].kind == "message"
        pids = executor.pids
    assert all(gone(pid, 1.0) for pid in pids)


_PARENT = """
from mutransfer.sweep.workers import Workers
from tests.sweep.small import tell
if __name__ == "__main__":
    workers = Workers(2)
    for name in "ab":
        workers.submit(name, tell, 1, 600.0)
    seen = []
    while len(seen) < 2:
        seen += workers.events()
    print(*workers.pids, flush=True)
    {end}
"""


@pytest.mark.parametrize("end", ["workers.events()", "raise ValueError"])
def test_no_worker_outlives_its_parent(tmp_path: Path, end: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT.format(end=end))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if end == "workers.events()":
            parent.send_signal(signal.SIGKILL)
        parent.wait(20)
    assert all(gone(pid) for pid in pids)


def test_input_error_travels_as_itself(workers: Workers) -> None:
    from mutransfer.sweep.jobs import call_function

    workers.submit("a", call_function, "no_such_module:run", str(Path.cwd()), {}, None)
    event = run(workers, 1)["a"]
    assert isinstance(event.value, InputError) and "no_such_module" in str(event.value)


def test_an_interruption_while_a_worker_is_loaded_leaves_it_alone_and_reaches_the_parent() -> None:
    with Workers(1) as workers:
        workers.submit("a", int, "7")  # never taken: only the process counts
        (process,) = workers._processes.values()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        assert process.is_alive()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
