"""What the runs' own configs can still tell: the plan at the largest size, and a coordinate check made now."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError
from mutransfer.report.plans import plan_of, plan_tables
from mutransfer.report.runs import Comparison, Layout, Run

CHECK_STEPS, CHECK_SEEDS, CHECK_ROWS = 4, 2, 4


def planned(layout: Layout) -> dict[str, Run]:
    """Group → its run at the largest sizes, for runs of our configs that a plan scales; each plan once."""
    found: dict[str, Run] = {}
    seen: set[str] = set()
    for label, runs in layout.labels.items():
        ours = [run for run in runs if isinstance(run.record["config"].get("model"), Mapping)]
        scaled = [run for run in ours if run.fields.get("recipe") != "sp"]
        if scaled:
            largest = max(scaled, key=lambda run: (math.prod(layout.size(run)), layout.size(run), run.key))
            if plan_key(largest) not in seen:
                seen.add(plan_key(largest))
                found[label] = largest
    return found


def plan_key(run: Run) -> str:
    """A hash of everything that decides the plan, and of the version that makes it."""
    from mutransfer import __version__

    config = run.record["config"]
    decides = {name: config.get(name) for name in ("model", "base", "optimizer", "recipe", "mode", "placement")}
    return hashlib.sha256(json.dumps([decides, __version__], sort_keys=True).encode()).hexdigest()[:16]


class PlanMaker:
    """Makes printed plans in a process of its own, which loads torch while this one draws. A context manager."""

    _CODE = "import sys, json; from mutransfer.report.plans import plan_tables as f; print(json.dumps(f(json.load(sys.stdin))))"

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.configs = {key: run.record["config"] for key, run in runs.items()}
        self.child: subprocess.Popen[str] | None = None

    def __enter__(self) -> PlanMaker:
        if self.configs:
            with contextlib.suppress(OSError):
                self.child = subprocess.Popen(
                    [sys.executable, "-c", self._CODE],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                )  # fmt: skip
                assert self.child.stdin is not None
                self.child.stdin.write(json.dumps(self.configs))
                self.child.stdin.close()
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None:
            self.child.kill()
            assert self.child.stdout is not None
            self.child.stdout.close()
            self.child.wait()

    def result(self) -> dict[str, str]:
        """Key → printed plan; made here when the other process could not."""
        if self.child is not None:
            assert self.child.stdout is not None
            text = self.child.stdout.read()
            if self.child.wait() == 0:
                return json.loads(text)
        return plan_tables(self.configs) if self.configs else {}


def check_recipes(layout: Layout, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """A small coordinate check of every group over the first axis at the sweep's sizes: name → report and picture, for the notes.

    The name is the recipe where the groups differ by nothing else, and the group's label otherwise.

    Raises InputError for runs that are not of our configs, and for fewer sizes than a check takes.
    """
    comparison = layout.comparisons[0]
    if not comparison.axis:
        raise InputError("--check: the runs have no size, such as width or depth, along which to check")
    found = {}
    for label, runs in comparison.groups.items():
        if not isinstance(runs[0].record["config"].get("model"), Mapping):
            raise InputError(
                "--check: these runs are of your own function; write mutransfer check package.module:build"
            )
        tell(f"coordinate check of {label}")
        name = str(runs[0].fields["recipe"]) if set(layout.by) <= {"recipe"} else label
        found[name] = _check(layout, comparison, runs)
    return found


def _check(layout: Layout, comparison: Comparison, runs: tuple[Run, ...]) -> dict[str, Any]:
    from mutransfer.check import coord_check
    from mutransfer.commands.check import cross_entropy
    from mutransfer.sweep.wanted import data_of
    from mutransfer.train import RunConfig, Task, resolve_device
    from mutransfer.train.loop import Run as Training

    axis = comparison.axis
    sizes = sorted({run.fields[axis] for run in runs})
    finished = [run for run in runs if run.fields[axis] == sizes[0] and run.metric(layout.metric) is not None]
    best = min(finished or runs, key=lambda run: (run.metric(layout.metric) or math.inf, run.key))
    config = RunConfig.from_dict(best.record["config"])
    config = replace(config, batch=min(config.batch, CHECK_ROWS), accumulation=1, seed=0)
    device = resolve_device(config.device)
    task = Task.of(config, device, data_of(config))

    def build(size: int) -> tuple[Any, Any]:
        sized = replace(config, model=replace(config.model, **{axis: size}))
        run = Training(sized, plan_of(sized), task, device, None)
        for group in run.optimizer.param_groups:  # the check's steps are made at the full learning rate
            group["lr"] = group["initial_lr"]
        return run.model, run.optimizer

    batches = [task.batch(step) for step in range(CHECK_STEPS)]
    report = coord_check(build, sizes, batches, cross_entropy, CHECK_STEPS, CHECK_SEEDS, axis=axis, clip=config.clip)
    with tempfile.TemporaryDirectory() as folder:
        picture = report.figure(Path(folder) / "check.png").read_bytes()
    return {"report": report.to_dict(), "picture": base64.b64encode(picture).decode()}
