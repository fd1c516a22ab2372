"""What a plan costs: a 48-layer, width-2048 GPT (2.4 B parameters) from its factory, each time in a fresh process.

Prints seconds of `mt.plan` and megabytes of peak memory above `import mutransfer`, and both beside what building the target's
weights for real would take: its parameters × 4 bytes. Limits: 0.5 s, 100 MB.
"""

import statistics
import subprocess
import sys

REPEATS = 3
SCRIPT = """
import resource, sys, time
import mutransfer as mt
from mutransfer.models import gpt_factory
make = gpt_factory(vocab_size=50304, context=1024)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
before, start, cpu = peak(), time.perf_counter(), time.process_time()
plan = mt.plan(make, base=dict(width=256, depth=48), target=dict(width=2048, depth=48), optimizer="adamw", recipe="completep")
seconds, busy, grown = time.perf_counter() - start, time.process_time() - cpu, peak() - before
start = time.perf_counter()
text = str(plan)
import math
print(seconds, grown, busy, time.perf_counter() - start, sum(math.prod(row.target_shape) for row in plan.rows))
"""


def measure() -> list[float]:
    """Seconds and extra megabytes of the plan, its CPU seconds, seconds to print it, parameters of the target: one fresh process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Print the median of the repeats, and the ratios to the limits and to the real weights."""
    runs = [measure() for _ in range(REPEATS)]
    seconds, megabytes, busy, printing = (statistics.median(run[i] for run in runs) for i in range(4))
    weights = runs[0][4] * 4 / 2**20
    print(
        f"plan of {runs[0][4] / 1e9:.2f} B parameters: {seconds:.3f} s ({seconds / 0.5:.2f} of the 0.5 s allowed), {busy:.3f} s of it on the CPU"
    )
    print(
        f"peak memory: +{megabytes:.0f} MB ({megabytes / 100:.2f} of the 100 MB allowed; 1/{weights / megabytes:.0f} of its weights)"
    )
    print(f"printing it: {printing:.3f} s")


if __name__ == "__main__":
    main()
