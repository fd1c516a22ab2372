"""How often the check is wrong: every correct and broken variant at other widths, seeds, batch sizes and learning rates.

    python -m benchmarks.check_variants [--quick | --setting=K] [pattern]

Prints each wrong answer and the confusion counts. A wrong first culprit counts as a miss of its own kind.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter

import mutransfer.check as check
from tests.check import zoo

SETTINGS = [
    # widths, rows, learning rate, seeds, data seed
    ([32, 64, 128, 256], 16, 3e-3, 3, 0),
    ([64, 128, 256, 512], 64, 1e-3, 2, 1),
    ([32, 64, 128, 256], 8, 1e-4, 3, 2),
    ([32, 64, 128, 256], 256, 3e-2, 2, 3),
    ([32, 128, 512], 32, 1e-2, 1, 4),
    ([32, 64, 128], 16, 3e-3, 2, 5),
    ([48, 96, 192], 32, 1e-3, 3, 6),
]


def main() -> None:
    quick = "--quick" in sys.argv
    only = next((a for a in sys.argv[1:] if not a.startswith("-")), "")
    counts: Counter[str] = Counter()
    chosen = [int(a.partition("=")[2]) for a in sys.argv if a.startswith("--setting=")]
    chosen = chosen or ([0] if quick else list(range(len(SETTINGS))))
    for widths, rows, lr, seeds, data in (SETTINGS[k] for k in chosen):
        zoo.RATE[0] = lr
        for variant in [*zoo.correct(), *zoo.broken()]:
            if not re.search(only, variant.name):
                continue
            batches, loss = zoo.task(variant, rows, data)
            start = time.perf_counter()
            report = check.coord_check(
                zoo.resolved(variant),
                widths,
                batches,
                loss,
                steps=3,
                seeds=seeds,
                clip=variant.clip,
                schedule=variant.schedule,
            )
            seconds = time.perf_counter() - start
            wanted = "PASS" if variant.culprits is None else "FAIL"
            answer = f"{wanted} -> {report.verdict}"
            if wanted == report.verdict == "FAIL" and not re.search(variant.culprits or "", report.culprits[0]):
                answer = "FAIL -> FAIL naming another tensor"
            counts[answer] += 1
            if wanted != report.verdict or "another" in answer or "-v" in sys.argv:
                print(
                    f"{answer:34} {variant.name} (widths {widths[0]}…{widths[-1]}, {rows} rows, lr {lr:g}) {seconds:.1f} s"
                )
                if report.verdict != "PASS":
                    print("    " + "\n    ".join(report.words().splitlines()[:6]))
    print()
    for answer, n in sorted(counts.items()):
        print(f"{n:5}  {answer}")


if __name__ == "__main__":
    main()
