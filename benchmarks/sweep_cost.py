"""Wall time of one grid: a process per run, one after the other, beside our sweep with its default workers.

    python benchmarks/sweep_cost.py [--steps 150]

The grid is the small setting of the learning-rate transfer: 2 layers, head size 16, context 64, batch 16, widths 32, 64, 128
and four rates, by default. The baseline starts Python for every run and leaves torch its default number of threads. Both
in this one run on this machine, so that the ratio counts, not the seconds. Then the finished sweep's command once more.
Claims: at least 2 times less wall time, and under 2 seconds for what is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutransfer.sweep import Store

ONE_RUN = """
import json, sys
from mutransfer.train import RunConfig, train
print(train(RunConfig.from_dict(json.loads(sys.argv[1]))).train_loss)
"""
SWEEP = "import sys; from mutransfer.cli import main; sys.exit(main())"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def timed(command: Sequence[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds of a command, and what it printed."""
    start = time.perf_counter()
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, found.stdout


def main() -> int:
    """Measure and print; exit code 1 if a claim does not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--widths", default="32,64,128")
    parser.add_argument("--rates", default="2^-8..2^-5")
    options = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "runs"
        sweep = [
            sys.executable, "-c", SWEEP, "sweep", "gpt", "--grid", f"width={options.widths}", f"lr={options.rates}",
            "--set", "depth=2", "head_size=16", "context=64", "batch=16", "init_std=0.08", f"steps={options.steps}",
            "warmup=20", "--out", str(out), "--yes",
        ]  # fmt: skip
        ours, _ = timed(sweep, environment)
        again, _ = timed(sweep, environment)
        with Store(out, create=False) as store:
            records = list(store.records().values())
        theirs, worst = 0.0, 0.0
        for record in records:
            seconds, said = timed([sys.executable, "-c", ONE_RUN, json.dumps(record["config"])], environment)
            theirs += seconds
            worst = max(worst, abs(float(said) / record["metrics"]["train_loss"] - 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"{len(records)} runs of {options.steps} updates on {cores} cores: a process per run {theirs:.1f} s, our sweep "
        f"{ours:.1f} s, {theirs / ours:.2f} times less; losses differ by {worst:.1e} at most; the finished sweep's command "
        f"again {again:.2f} s"
    )
    return 0 if theirs >= 2 * ours and again < 2 else 1


if __name__ == "__main__":
    sys.exit(main())
