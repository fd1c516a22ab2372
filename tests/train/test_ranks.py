"""A run on several ranks is the run of one process: same rows, same losses, same weights, to rounding."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mutransfer.cli import main
from mutransfer.errors import InputError
from mutransfer.train import LogPoint, RankDied, Ranks, RunConfig, RunResult, launch, load_checkpoint, train
from mutransfer.train.ranks import leave
from tests.train.runs import digits_run, gpt_run, text

OPTIMIZERS: dict[str, dict[str, Any]] = {"adamw": {}, "sgd": {"lr": 0.5, "momentum": 0.9}}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon-kimi"] = {}
DROPOUT = gpt_run(sizes={"dropout": 0.1}, accumulation=2)
BATCH_NORM = "batch norm"


def equal_runs() -> dict[str, RunConfig]:
    runs = {
        f"{name}-{accumulation}": gpt_run(optimizer=name, accumulation=accumulation, val_every=10, **settings)
        for name, settings in OPTIMIZERS.items()
        for accumulation in (1, 2, 4)
    }
    runs["table"] = digits_run("mlp", clip_norm="torch")
    runs["multiplier"] = gpt_run(sizes={"tied": True, "norm": "none"}, placement="multiplier", recipe="completep")
    return runs


Job = tuple[str, RunConfig, dict[str, Any]]


def jobs(folder: Path) -> list[Job]:
    """What the two ranks do, in this order: (name, config, options of `train`)."""
    listed: list[Job] = [(name, config, {"folder": folder / name}) for name, config in equal_runs().items()]
    listed.append(("diverged", gpt_run(optimizer="sgd", lr=1e9, clip=None), {}))
    listed.append(("whole", DROPOUT, {"folder": folder / "whole"}))
    listed.append(("paused", DROPOUT, {"folder": folder / "halves", "until": 11}))
    listed.append(("halves", DROPOUT, {"folder": folder / "halves"}))
    listed.append(("handed over", gpt_run(), {"folder": folder / "two then one", "until": 11}))
    listed.append(("taken over", gpt_run(), {"folder": folder / "one then two"}))
    return listed


def _rank(rank: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, config, options in jobs(folder):
        points: list[LogPoint] = []
        data = {"data": text()} if config.data == "topics" else {}
        results.put((rank, name, train(config, on_log=points.append, **data, **options).to_dict(), len(points)))
    results.close()
    results.join_thread()
    leave(0)


Outcomes = dict[tuple[int, str], tuple[RunResult, int]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcomes]:
    """All jobs on two gloo ranks: their folder, and by (rank, name) the result and how many points it logged."""
    folder = tmp_path_factory.mktemp("ranks")
    train(gpt_run(), folder=folder / "one then two", until=11, data=text())
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, folder, results), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    found: Outcomes = {}
    for _ in range(2 * len(jobs(folder))):
        rank, name, result, points = results.get(timeout=120)
        found[rank, name] = RunResult.from_dict(result), points
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return folder, found


def alone(config: RunConfig, **options: Any) -> RunResult:
    return train(config, **({"data": text()} if config.data == "topics" else {}), **options)


def distance(a: RunResult, b: RunResult) -> float:
    """The largest relative difference between two loss curves."""
    return max(abs(x - y) / abs(y) for x, y in zip(a.losses, b.losses, strict=True))


@pytest.mark.parametrize("name", equal_runs())
def test_two_ranks_are_one_process_to_rounding(name: str, two: tuple[Path, Outcomes], tmp_path: Path) -> None:
    folder, outcomes = two
    result, config = outcomes[0, name][0], equal_runs()[name]
    one = alone(config, folder=tmp_path)
    # Muon multiplies in bfloat16, where a rounding of float32 can move a whole unit of 2⁻⁸
    tolerance = 1e-4 if config.optimizer.startswith("muon") else 2e-6
    assert len(result.losses) == config.steps and distance(result, one) < tolerance
    assert result.val_loss == pytest.approx(one.val_loss, rel=tolerance)
    assert [p.tokens for p in result.points] == [p.tokens for p in one.points] and result.flops == one.flops
    if config.accumulation == 2:  # the very same micro-batches, halved exactly and summed once
        assert result.losses == one.losses and result.val_loss == one.val_loss
    ours, theirs = (load_checkpoint(place / "checkpoint.pt") for place in (folder / name, tmp_path))
    assert ours["config"] == theirs["config"]
    for tensor, weight in theirs["model"].items():
        gap = (ours["model"][tensor] - weight).norm() / weight.norm().clamp(min=1e-8)
        assert gap < 50 * tolerance, tensor


def test_all_ranks_return_the_result_and_one_of_them_speaks(two: tuple[Path, Outcomes]) -> None:
    _, outcomes = two
    for name in equal_runs():
        (first, spoken), (second, silent) = outcomes[0, name], outcomes[1, name]
        assert first.losses == second.losses and first.val_loss == second.val_loss
        assert spoken == len(first.points) > 0 and silent == 0


def test_divergence_ends_all_ranks_at_the_same_update(two: tuple[Path, Outcomes]) -> None:
    _, outcomes = two
    one = alone(gpt_run(optimizer="sgd", lr=1e9, clip=None))
    for rank in range(2):
        result = outcomes[rank, "diverged"][0]
        assert (result.status, result.diverged_at) == ("diverged", one.diverged_at)


def test_a_run_on_two_ranks_continues_bit_for_bit_dropout_included(two: tuple[Path, Outcomes]) -> None:
    _, outcomes = two
    assert outcomes[0, "paused"][0].status == "paused" and len(outcomes[1, "paused"][0].losses) == 11
    whole, halves = outcomes[0, "whole"][0], outcomes[0, "halves"][0]
    assert whole.losses == halves.losses and whole.val_loss == halves.val_loss


@pytest.mark.parametrize("order", ["two then one", "one then two"])
def test_a_run_continues_under_another_number_of_ranks(order: str, two: tuple[Path, Outcomes]) -> None:
    folder, outcomes = two
    one = alone(gpt_run())
    result = alone(gpt_run(), folder=folder / order) if order == "two then one" else outcomes[0, "taken over"][0]
    assert result.status == "finished" and distance(result, one) < 2e-6


@pytest.mark.parametrize(("batch", "accumulation", "size", "count"), [
    (8, 1, 2, 1), (8, 4, 2, 2), (8, 8, 2, 4), (12, 3, 2, 2), (8, 1, 8, 1), (12, 4, 3, 2), (8, 4, 1, 4),
])  # fmt: skip
def test_no_rank_holds_more_rows_at_once_than_one_process(batch: int, accumulation: int, size: int, count: int) -> None:
    assert Ranks(0, size).micro_batches(batch, accumulation) == count
    assert batch // size // count <= batch // accumulation


@pytest.mark.parametrize(("batch", "accumulation", "size", "multiple"), [(8, 1, 3, 3), (8, 8, 3, 9), (6, 3, 2, 4)])
def test_a_batch_that_does_not_divide_is_one_clear_line(
    batch: int, accumulation: int, size: int, multiple: int
) -> None:
    with pytest.raises(InputError, match=f"batch={batch} .* among {size} ranks .* multiple of {multiple},"):
        Ranks(0, size).micro_batches(batch, accumulation)


def test_batch_norm_is_refused_in_one_clear_line() -> None:
    config = digits_run("resnet")
    with pytest.raises(InputError, match=r"'bn1' is a batch norm.*one process, not on 2 ranks"):
        Ranks(0, 2).wrap(config.make_model())


@pytest.mark.parametrize("device", ["mps", "cuda:0"])
def test_ranks_cannot_share_one_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"device='{device}' is one device, for 2 ranks: write"):
        alone(gpt_run(device=device))


def test_a_schedulers_world_size_is_not_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Ranks.join("cpu") == Ranks()


@pytest.mark.parametrize("ranks", [0, -1, 1.5, True, "2"])
def test_a_number_of_ranks_that_is_none_is_one_clear_line(ranks: Any) -> None:
    with pytest.raises(InputError, match=f"ranks={ranks!r}: give a whole number"):
        launch(gpt_run(), ranks)


# ------------------------------------------------------------------------------------------- processes by torchrun


def test_launched_runs_do_not_meet_and_bad_input_comes_back(tmp_path: Path) -> None:
    config = gpt_run(log_every=1, steps=6)
    points: list[LogPoint] = []
    caught: list[Exception] = []

    def unfit() -> None:
        try:
            launch(replace(config, model=replace(config.model, vocab_size=5)), 2, tmp_path / "bad")
        except InputError as error:
            caught.append(error)

    other = threading.Thread(target=unfit)
    other.start()
    result = launch(config, 2, tmp_path / "good", on_log=points.append)
    other.join()
    assert "vocab_size=5 of the model is below" in str(caught[0]) and not (tmp_path / "bad").exists()
    one = alone(config)
    assert distance(result, one) < 2e-6 and tuple(points) == result.points
    assert {path.name for path in (tmp_path / "good").iterdir()} == {"checkpoint.pt", "result.json"}


def _descendants(pid: int) -> dict[int, str]:
    """Process id → RANK of the ranks below process `pid`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    below, found = {pid}, {}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    for child in below:
        try:
            words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for word in words:
            if word.startswith(b"RANK="):
                found[child] = word.partition(b"=")[2].decode()
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")
LONG = gpt_run(steps=100_000, log_every=1, val_batches=0)


@needs_proc
def test_a_killed_rank_ends_the_run_in_one_clear_line() -> None:
    started = time.monotonic()

    def kill(point: LogPoint) -> None:
        if point.step == 3:
            os.kill(next(pid for pid, rank in _descendants(os.getpid()).items() if rank == "1"), signal.SIGKILL)

    with pytest.raises(RankDied, match=r"^rank 1 was killed by signal 9 \(out of memory\?\), and the run with it"):
        launch(LONG, 2, on_log=kill)
    assert not _descendants(os.getpid()) and time.monotonic() - started < 60


@needs_proc
def test_an_interrupted_launch_leaves_no_process_behind() -> None:
    def interrupt(point: LogPoint) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(LONG, 2, on_log=interrupt)
    assert not _descendants(os.getpid())


MODEL = ("width=32", "base.width=16", "depth=1", "head_size=8", "context=16")
SETTINGS = ("batch=8", "warmup=4", "val_batches=2", "log_every=1", "checkpoint_every=5", "device=cpu")
LINE = ("train", "gpt", "--set", *MODEL, *SETTINGS)


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@needs_proc
def test_ranks_end_with_a_killed_command_and_the_same_command_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*LINE, "steps=60", "--out", str(tmp_path / "run")]
    two = [sys.executable, "-m", "mutransfer.cli", *line, "--ranks", "2"]
    command = subprocess.Popen(two, stderr=subprocess.DEVNULL)
    _wait_until(lambda: (tmp_path / "run" / "checkpoint.pt").exists())
    ranks = _descendants(command.pid)
    assert sorted(ranks.values()) == ["0", "1"]
    command.kill()
    command.wait()
    _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))
    assert main(line) == 0  # in one process now
    assert "finished" in capsys.readouterr().out
    config = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["config"]
    one, result = alone(config), alone(config, folder=tmp_path / "run")
    assert len(result.losses) == 60 and distance(result, one) < 5e-6


def test_a_command_under_torchrun_speaks_once(tmp_path: Path) -> None:
    line = [*LINE, "steps=6", "--out", str(tmp_path / "run")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "-m", "mutransfer.cli", *line], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count("finished") == 1 and len(done.stdout.splitlines()) == 1
    assert done.stderr.count("done in") == 1 and (tmp_path / "run" / "result.json").exists()
