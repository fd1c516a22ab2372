"""Kills during sweeps: no finished run is lost or repeated, and the results are those of undisturbed sweeps bit for bit.

    python benchmarks/sweep_kills.py [--kills 100] [--seed 0]

Two kinds of sweeps, at the same time: one calls a user's function that appends a line to a log as the last thing it does, so that
every execution that ended is counted without the product's help; the other trains small GPTs that leave checkpoints. Each is
a process `mutransfer sweep` that is killed with signal 9 at random times, it or one of its workers, and started again
until it ends by itself. After each kill of the whole, none of its processes may be left. Prints one line; exit code 1 if
anything was lost, doubled, different or left running.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mutransfer.sweep import Store

FUNCTION = '''
import os, time

def run(width, lr, seed):
    """A quadratic with the noise of `seed`, slowly."""
    x, state = 1.0, seed + 1
    for step in range(200):
        state = (1103515245 * state + 12345) % 2**31
        x -= lr * (x + (state / 2**31 - 0.5) / width)
        time.sleep(SECONDS / 200)
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{width} {lr} {seed}\\n".encode())
    return x * x
'''
KINDS = ("function", "gpt")
COMMAND = "import sys; from mutransfer.cli import main; sys.exit(main())"
COSTS = ("seconds", "cpu_seconds", "ended", "attempts", "copied_from", "environment", "git", "version")


class Kinds:
    """The two sweeps as arguments of `mutransfer sweep`, and where the function writes its log."""

    def __init__(self, folder: Path, runs: int, seconds: float, steps: int) -> None:
        self.log = folder / "log"
        source = FUNCTION.replace("SECONDS", repr(seconds)).replace("LOG", repr(str(self.log)))
        (folder / "user.py").write_text(source)
        rates = [f"{2.0**-power:g}" for power in range(2, 2 + runs // 4)]
        self.arguments = {
            "function": [f"{folder / 'user.py'}:run", "--grid", "width=32,64", f"lr={','.join(rates)}", "seed=0,1"],
            "gpt": [
                "gpt", "--grid", "width=16,32", f"lr={','.join(rates)}", "seed=0,1", "--set", "head_size=8", "depth=1",
                "context=16", "batch=8", f"steps={steps}", "log_every=10", "checkpoint_every=20",
            ],
        }  # fmt: skip

    def start(self, kind: str, out: Path) -> subprocess.Popen[bytes]:
        """The sweep as a process of its own."""
        command = [sys.executable, "-c", COMMAND, "sweep", *self.arguments[kind], "--out", str(out), "--yes"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def children(pid: int) -> dict[int, tuple[str, str]]:
    """pid → (when it was started, command line) of every process below this one."""
    parents: dict[int, list[int]] = {}
    started: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
            started[int(path.parent.name)] = fields[19]
    found: dict[int, tuple[str, str]] = {}
    todo = [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[child] = (started[child], words)
            todo.append(child)
    return found


def workers(pid: int) -> list[int]:
    """The worker processes of a sweep."""
    return sorted(child for child, (_, words) in children(pid).items() if "spawn_main" in words)


def left(processes: dict[int, tuple[str, str]], within: float = 10.0) -> list[int]:
    """Those that still run after a while."""
    end = time.monotonic() + within
    while True:
        alive: list[int] = []
        for pid, (start, _) in processes.items():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z" and fields[19] == start:
                alive.append(pid)
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.02)


def content(folder: Path) -> dict[str, Any]:
    """What a sweep found: every row and point without what the clock says."""
    with Store(folder, create=False) as store:
        rows = {row["key"]: {n: v for n, v in row.items() if n not in COSTS} for row in store.rows()}
        points = {
            key: [{n: v for n, v in p.items() if n != "seconds"} for p in listed]
            for key, listed in store.points().items()
        }
    return {key: (row, points.get(key)) for key, row in rows.items()}


def main() -> int:
    """Kill, compare, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=24, help="runs of each sweep")
    parser.add_argument("--seconds", type=float, default=0.6, help="of a run of the function")
    parser.add_argument("--steps", type=int, default=150, help="of a run of ours")
    parser.add_argument("--longest", type=float, default=3.0, help="seconds from a kill to the next one at most")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        kinds = Kinds(Path(place), options.runs, options.seconds, options.steps)
        # the two kinds at the same time, on more processes than cores: moments at which to be killed come in all sorts
        with ThreadPoolExecutor(2) as pool:
            counts = sum(pool.map(lambda kind: tortured(kinds, kind, Path(place), options), KINDS), Counter[str]())
    bad = sum(counts[name] for name in ("lost", "doubled", "different", "processes left"))
    print(
        f"{counts['worker kills']} kills of a worker and {counts['whole kills']} of the whole in {counts['sweeps']} sweeps of "
        f"{counts['runs']} runs ({counts['executions']} counted executions): {counts['lost']} lost, {counts['doubled']} doubled, "
        f"{counts['different']} different from undisturbed sweeps, {counts['processes left']} processes left, "
        f"{counts['files left']} files left; {time.monotonic() - began:.0f} s"
    )
    return 1 if bad else 0


def tortured(kinds: Kinds, kind: str, folder: Path, options: argparse.Namespace) -> Counter[str]:
    """An undisturbed sweep, and disturbed ones until this kind has had its half of the kills."""
    if kinds.start(kind, folder / f"calm-{kind}").wait() != 0:
        raise RuntimeError(f"the undisturbed sweep {kind} failed")
    calm = content(folder / f"calm-{kind}")
    chance = random.Random(f"{options.seed} {kind}")
    counts: Counter[str] = Counter()
    while counts["worker kills"] + counts["whole kills"] < options.kills / 2:
        out = folder / f"{kind}-{counts['sweeps']}"
        counts["sweeps"] += 1
        if kind == "function":
            kinds.log.unlink(missing_ok=True)
        disturbed(kinds, kind, out, options, chance, counts)
        found = content(out)
        counts["runs"] += len(found)
        counts["lost"] += len(calm.keys() - found.keys())
        counts["different"] += sum(found.get(key) != value for key, value in calm.items())
        if kind == "function":
            lines = Counter(kinds.log.read_text().splitlines())
            counts["executions"] += sum(lines.values())
            counts["doubled"] += sum(lines.values()) - len(lines)
            counts["lost"] += len(calm) - len(lines)
        scraps = [path.name for path in out.rglob("*") if path.is_file() and "runs.sqlite" not in path.name]
        counts["files left"] += len(scraps)
    return counts


def disturbed(
    kinds: Kinds, kind: str, out: Path, options: argparse.Namespace, chance: random.Random, counts: Counter[str]
) -> None:
    """One sweep to its end, started again after every kill of the whole, and while runs count as failed."""
    process = kinds.start(kind, out)
    for _ in range(1000):
        spare = counts["worker kills"] + counts["whole kills"] >= options.kills / 2
        a_worker, at_work = chance.random() < 0.5, chance.random() < 0.75
        after = chance.uniform(0.0, options.longest)
        if not spare and (a_worker or at_work):  # else it may still be starting
            while process.poll() is None and not workers(process.pid):
                time.sleep(0.05)
        try:
            code = process.wait(None if spare else after)
        except subprocess.TimeoutExpired:
            below, at = children(process.pid), workers(process.pid)
            if a_worker and at:
                os.kill(chance.choice(at), signal.SIGKILL)
                counts["worker kills"] += 1
                continue
            process.send_signal(signal.SIGKILL)
            process.wait()
            counts["whole kills"] += 1
            counts["processes left"] += len(left(below))
        else:
            if code == 0:
                return
        process = kinds.start(kind, out)
    raise RuntimeError(f"the sweep {kind} does not end")


if __name__ == "__main__":
    sys.exit(main())
