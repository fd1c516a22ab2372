"""Kills of workers and of whole sweeps, and two sweeps of one store at once: every run once, nothing left running."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutransfer.sweep import read_rows
from mutransfer.sweep.store import FILE

ROOT = Path(__file__).parents[2]


def test_random_kills_lose_and_repeat_nothing() -> None:
    sizes = ["--kills", "8", "--runs", "8", "--seconds", "0.3", "--steps", "60", "--longest", "1.5"]
    command = [sys.executable, str(ROOT / "benchmarks" / "sweep_kills.py"), *sizes]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 lost, 0 doubled, 0 different" in found.stdout and "0 processes left" in found.stdout


USER = """
import time
from pathlib import Path

def run(lr, seed):
    time.sleep(0.15)
    with Path("log").open("a") as file:
        file.write(f"{lr} {seed}\\n")
    return (lr - 0.3) ** 2 + seed
"""


def test_two_commands_on_one_store_share_the_runs(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    start = "import sys; from mutransfer.cli import main; sys.exit(main())"
    words = ["sweep", "user:run", "--grid", "lr=0.1,0.2,0.3,0.4", "seed=0..5", "--out", "runs", "--workers", "1"]
    command = [sys.executable, "-c", start, *words]
    sweeps = [subprocess.Popen(command, cwd=tmp_path, stdout=-3, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [sweep.communicate(timeout=300)[1] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], said
    lines = Counter((tmp_path / "log").read_text().splitlines())
    assert len(lines) == 24 and set(lines.values()) == {1}
    assert [row["status"] for row in read_rows(tmp_path / "runs")] == ["finished"] * 24
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [FILE]
