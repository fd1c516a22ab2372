"""What `import mutransfer` adds to `import torch`, in fresh processes taken in turn. Limit: 0.2 s."""

import statistics
import subprocess
import sys

REPEATS = 5
SCRIPT = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import mutransfer as mt
mt.plan, mt.coord_check, mt.Plan  # names are loaded when they are used
print(middle - start, time.perf_counter() - middle)
"""


def measure() -> tuple[float, float]:
    """Seconds of `import torch`, then of `import mutransfer`, in one fresh process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    torch_seconds, own_seconds = map(float, done.stdout.split())
    return torch_seconds, own_seconds


def main() -> None:
    """Print the medians and their ratio."""
    runs = [measure() for _ in range(REPEATS)]
    torch_seconds, own = (statistics.median(run[i] for run in runs) for i in range(2))
    print(f"import torch {torch_seconds:.2f} s, import mutransfer +{own:.3f} s: {own / torch_seconds:.3f} of it, "
          f"{own / 0.2:.2f} of the 0.2 s allowed")  # fmt: skip


if __name__ == "__main__":
    main()
