"""Ray is really started here, and an actor's process killed under it."""

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mutransfer.sweep import Store, Wanted
from mutransfer.sweep.driver import Ask, Driver, Record, Search
from mutransfer.sweep.ray import RayCluster
from tests.sweep.small import Inline, gone, gpt, tell, wrong

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One Ray for the whole file, on two CPUs of its own."""
    with RayCluster(2) as executor:
        yield executor


def test_killed_actor_is_replaced_and_results_are_those_of_a_plain_run(tmp_path: Path, cluster: RayCluster) -> None:
    runs = [Wanted.of(gpt(lr=2.0**-power, steps=100, checkpoint_every=20)) for power in (7, 8)]
    killed: list[int] = []

    class Kill:
        def started(self, run: Wanted) -> None: ...
        def ended(self, run: Wanted, record: Record) -> None: ...
        def point(self, run: Wanted, point: Any) -> None:
            if run is runs[0] and point["step"] >= 30 and not killed:
                killed.extend(cluster.pids_of([run.result]))
                os.kill(killed[0], signal.SIGKILL)

    records: dict[str, list[Record]] = {}
    for name, executor, watchers in (("ray", cluster, [Kill()]), ("here", Inline(), [])):

        def search(name: str = name) -> Search:
            records[name] = list((yield [Ask(run) for run in runs]))

        with Store(tmp_path / name) as store:
            Driver(store, executor, watchers).run([search()])
    assert killed and gone(killed[0])
    assert [r["metrics"] for r in records["ray"]] == [r["metrics"] for r in records["here"]]
    with Store(tmp_path / "ray") as store:
        assert store.records()[runs[0].key]["attempts"] == 2


def test_messages_errors_and_threads(cluster: RayCluster) -> None:
    cluster.submit("bad", wrong)
    cluster.submit("good", tell, 3, 0.0)
    events = []
    while sum(event.kind != "message" for event in events) < 2:
        events += cluster.events()
    ends = {event.job: event for event in events if event.kind != "message"}
    assert ends["bad"].kind == "error" and str(ends["bad"].value) == "ZeroDivisionError: no number"
    assert ends["good"].kind == "done" and ends["good"].value["threads"] == 1
    assert [event.value["i"] for event in events if event.kind == "message"] == [0, 1, 2]
    assert cluster.events() == []


def test_nothing_is_left_after_close(cluster: RayCluster) -> None:
    pids = cluster.pids
    assert pids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about its sockets
        cluster.close()
    assert all(gone(pid) for pid in pids)
    import ray

    assert not ray.is_initialized()
