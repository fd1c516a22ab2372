"""Growing a checkpoint with Adam's state ×2 in width: time against reading and writing the same bytes, and peak memory.

    python -m benchmarks.grow_checkpoint [width, default 256; 768 for 100 M parameters] [rounds, default 3]

Every measurement is a process of its own; the two kinds take turns, and the medians are compared. `read+write` reads the source
and writes a file as large as the grown one, with fsync. Needs about five times the grown state free in the temporary folder; it is cleaned up.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mutransfer.build import plan
from mutransfer.models import GPTConfig
from mutransfer.train import RunConfig, make_scheduler
from mutransfer.train.checkpoint import CHECKPOINT, rng_state, save_checkpoint
from mutransfer.train.loop import make_optimizer

BLOCK = 1 << 24  # bytes read or written at once
TIME, MEMORY = 3.0, 1.3  # what it must reach


def make_source(folder: Path, width: int) -> None:
    """A run of a GPT of depth 12 and 10 000 tokens, as it is after some updates: weights and both moments are random."""
    config = RunConfig(
        model=GPTConfig(vocab_size=10_000, context=256, width=width, depth=12, head_size=64), base={"width": 128}, steps=200,
    )  # fmt: skip
    made = plan(config.make_model, base=config.base, target=config.target)
    model = config.make_model()
    optimizer = make_optimizer(config, made, model)
    scheduler = make_scheduler(optimizer, steps=config.steps, warmup=config.warmup)
    for p in model.parameters():
        optimizer.state[p] = {
            "step": torch.tensor(100.0),
            "exp_avg": torch.randn_like(p),
            "exp_avg_sq": torch.rand_like(p),
        }
    state = {
        "plan": made.to_dict(), "data": "", "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(), "rng": rng_state(torch.device("cpu")), "rng_others": [],
        "losses": torch.zeros(100, dtype=torch.float64), "points": [], "step": 100, "status": "running", "reason": None,
        "diverged_at": None, "val_loss": None, "seconds": 0.0,
    }  # fmt: skip
    folder.mkdir()
    save_checkpoint(folder / CHECKPOINT, config, state)


def grow(source: Path, out: Path, width: int) -> None:
    """Grow to this width, as `mutransfer grow --no-verify` does."""
    from mutransfer.growth.build import grow_plan
    from mutransfer.growth.files import Growing, open_checkpoint, prepare, write

    checkpoint = open_checkpoint(source, {"width": width})
    planned = grow_plan(checkpoint.small, checkpoint.big, checkpoint.plan)
    write(checkpoint, prepare(checkpoint, Growing(planned, checkpoint.weights)), out)


def copy(source: Path, out: Path, size: int) -> None:
    """Read the source; write so many bytes."""
    with (source / CHECKPOINT).open("rb") as file:
        while file.read(BLOCK):
            pass
    out.mkdir()
    data = os.urandom(BLOCK)
    with (out / "copy").open("wb") as file:
        for start in range(0, size, BLOCK):
            file.write(data[: size - start])
        file.flush()
        os.fsync(file.fileno())


def child(kind: str, source: Path, out: Path, number: int) -> dict[str, float]:
    """Time (without the interpreter's start and imports) and peak memory of a process that does one of the two."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.grow_checkpoint", kind, str(source), str(out), str(number)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def main() -> None:
    """Print times, their ratio, and peak memory over the grown state."""
    torch.set_num_threads(1)
    width = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, big = folder / "small", folder / "big"
        make_source(source, width)
        child("grow", source, big, 2 * width)  # the source is in the page cache from here on
        size = (big / CHECKPOINT).stat().st_size
        _remove(big)
        times: dict[str, list[float]] = {"read+write": [], "grow": []}
        peak = 0.0
        for _ in range(rounds):
            found = child("copy", source, folder / "copy", size)
            times["read+write"].append(found["seconds"])
            _remove(folder / "copy")
            found = child("grow", source, big, 2 * width)
            times["grow"].append(found["seconds"])
            peak = max(peak, found["peak"])
            _remove(big)
        small = (source / CHECKPOINT).stat().st_size
    middle = {kind: statistics.median(values) for kind, values in times.items()}
    print(
        f"{small / 12e6:.1f} M parameters with Adam's state, {small / 1e9:.2f} GB → {size / 1e9:.2f} GB, width {width} → {2 * width}"
    )
    for kind, values in times.items():
        print(f"{kind:>10}: {middle[kind]:.2f} s (median of {', '.join(f'{v:.2f}' for v in values)})")
    ratio = middle["grow"] / middle["read+write"]
    print(f"time: {ratio:.2f} × reading and writing the same bytes (at most {TIME:g})")
    print(f"peak memory: {peak / size:.2f} × the grown state, {peak / 1e9:.2f} GB (at most {MEMORY:g})")


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    if len(sys.argv) > 4:
        torch.set_num_threads(1)
        from mutransfer.growth import build, files  # noqa: F401 # imports are not what is measured

        start = time.perf_counter()
        {"grow": grow, "copy": copy}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        spent = time.perf_counter() - start
        unit = 1 if sys.platform == "darwin" else 1024
        print(json.dumps({"seconds": spent, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}))
    else:
        main()
