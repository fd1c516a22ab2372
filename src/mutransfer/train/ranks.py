"""One run on several devices: the ranks that share it under torchrun, and `launch`, which starts them.

The run is the same run whatever the number of ranks: `batch` is the global batch, its rows and their order depend on
(seed, update) alone, and the gradients, losses and validation losses that the ranks see are means over all of it. The loss
curve equals one process's up to the rounding of another order of summation.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mutransfer.errors import InputError
from mutransfer.train.config import RunConfig
from mutransfer.train.result import LogPoint, RunResult


@dataclass(frozen=True)
class Ranks:
    """The processes that share a run, one per device, seen from one of them; the default is a run of one process."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default=torch.device("cpu"))

    @classmethod
    def join(cls, device: str) -> "Ranks":
        """The ranks that torchrun started (or the process group that is there already); else this process alone.

        `device` is a config's: with several ranks, "auto" and "cuda" are each rank's own GPU (NCCL), "cpu" is the CPU (gloo).
        Raises `InputError` for a device that this machine lacks or that ranks cannot share.
        """
        if dist.is_available() and dist.is_initialized():
            size = dist.get_world_size()
        else:
            size = int(os.environ.get("WORLD_SIZE", "1")) if _under_torchrun() else 1
        if size == 1:
            return cls(device=resolve_device(device))
        place = _own_device(device, size)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        return cls(dist.get_rank(), size, place)

    @property
    def main(self) -> bool:
        """Whether this is the one rank that writes files and speaks."""
        return self.rank == 0

    def micro_batches(self, batch: int, accumulation: int) -> int:
        """How many micro-batches each rank makes of its ``batch / size`` rows: ``ceil(accumulation / size)``.

        So no rank holds more rows at once than one process would. Raises `InputError` where the rows do not divide.
        """
        count = -(-accumulation // self.size)
        if batch % (self.size * count):
            raise InputError(
                f"batch={batch} with accumulation={accumulation} does not divide among {self.size} ranks of {count} "
                f"micro-batch(es) each: give a batch that is a multiple of {self.size * count}, or other ranks"
            )
        return count

    def seed(self, seed: int) -> int:
        """A stream of its own for every rank (dropout); rank 0's is the one that a single process draws from."""
        return seed ^ (self.rank << 48)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages gradients over ranks; the model itself when there is one rank.

        Raises `InputError` for batch norm, whose statistics would be those of a rank's rows.
        """
        if self.size == 1:
            return model
        name = next((name for name, module in model.named_modules() if isinstance(module, _BatchNorm)), None)
        if name is not None:
            raise InputError(
                f"{name!r} is a batch norm, whose statistics over one rank's rows are not the run's: "
                f"train this model in one process, not on {self.size} ranks"
            )
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def accumulate(self, network: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Around the passes of one micro-batch: gradients travel with the last one only."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each of them."""
        if self.size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, the same bits on each of them; not finite where any rank's is not."""
        return self.sum(tensor) / self.size if self.size > 1 else tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def leave(code: int) -> None:
    """End this process after a run on several ranks that went well; nothing where there are none.

    At once, when all are here and output is flushed: destructors of the ranks' communication threads now and then abort an
    interpreter that shuts down (SIGABRT, "terminate called without an active exception"), and the finished run would count as failed.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()  # a rank that still talks to one that is gone aborts
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def rank_of_torchrun() -> int | None:
    """This process's rank among several that torchrun started; None in a process by itself."""
    return int(os.environ["RANK"]) if _under_torchrun() and int(os.environ["WORLD_SIZE"]) > 1 else None


def _under_torchrun() -> bool:
    # WORLD_SIZE alone may be left over from a cluster's scheduler
    return dist.is_available() and dist.is_torchelastic_launched() and "WORLD_SIZE" in os.environ


def resolve_device(name: str) -> torch.device:
    """The torch device of "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises `InputError` for a device that this machine lacks.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    if (device.type == "cuda" and not cuda) or (device.type == "mps" and not mps):
        raise InputError(f"device={name!r} is not available on this machine: write device='cpu' or device='auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA device(s), counted from cuda:0"
        )
    return device


def _own_device(name: str, size: int) -> torch.device:
    """The device of this rank, one of several."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device={name!r} is one device, for {size} ranks: write device='auto', 'cuda' or 'cpu'")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    here, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if local >= here:
        raise InputError(
            f"device={name!r}: {os.environ.get('LOCAL_WORLD_SIZE', size)} ranks here, but this machine has {here} "
            "CUDA device(s): start as many ranks as devices, or write device='cpu'"
        )
    return torch.device("cuda", local)


# ------------------------------------------------------------------------------------------------ starting them


class RankDied(RuntimeError):
    """A rank ended without a result (killed, out of memory, an error in its code), and the whole run with it."""


def launch(
    config: RunConfig,
    ranks: int,
    folder: Path | None = None,
    *,
    resume: bool = True,
    until: int | None = None,
    on_log: Callable[[LogPoint], None] | None = None,
    small: Path | None = None,
) -> RunResult:
    """`train` on `ranks` processes of this machine, one per device, under torchrun; a port of its own for every call.

    Arguments and result are those of `train`. A checkpoint of another number of ranks is continued: the same run up to
    rounding (bit for bit under the same number). The processes end when this one does, however it ends.
    Raises `InputError` as `train` does, and `RankDied` when one of the processes dies: the others are ended then.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise InputError(f"ranks={ranks!r}: give a whole number of processes, 1 or more")
    order = {
        "config": config.to_dict(),
        "folder": None if folder is None else str(Path(folder).absolute()),
        "resume": resume,
        "until": until,
        "small": None if small is None else str(Path(small).absolute()),
    }
    with tempfile.TemporaryDirectory(prefix="mutransfer-") as place:
        written = Path(place) / "order.json"
        written.write_text(json.dumps(order))
        with (Path(place) / "errors").open("w+b") as errors:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
                    *("--nproc-per-node", str(ranks), "-m", "mutransfer.train.rank_process", str(written)),
                ],
                stdin=subprocess.PIPE,  # never written to: its end tells the ranks that this process is gone
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(),
                start_new_session=True,  # an interruption reaches this process, which decides what it means
            )
            try:
                return _follow(process, on_log, errors)
            finally:
                _end(process)


def _environment() -> dict[str, str]:
    """Ours, without what an outer torchrun left in it; one thread per rank unless the user says otherwise."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {"OMP_NUM_THREADS": "1", **kept}


def _follow(
    process: subprocess.Popen[bytes], on_log: Callable[[LogPoint], None] | None, errors: IO[bytes]
) -> RunResult:
    """Pass on the points that rank 0 reports, and return the result; RankDied when the ranks end without one."""
    assert process.stdout is not None
    told: dict[int, str] = {}  # the error of each rank that could say it, the earliest first
    result: RunResult | None = None
    for line in process.stdout:
        kind, rank, value = json.loads(line)
        if kind == "point" and on_log is not None:
            on_log(LogPoint(**value))
        elif kind == "result":
            result = RunResult.from_dict(value)
        elif kind == "input":
            raise InputError(value)
        elif kind == "error":
            told[rank] = value
    code = process.wait()
    if result is None:
        errors.seek(0)
        raise RankDied(_cause(told, errors.read().decode(errors="replace"), code))
    return result


def _cause(told: dict[int, str], said: str, code: int) -> str:
    """Why the ranks ended, as one line, from what they told and from what torchrun said of their exit codes."""
    continues = "and the run with it; the same call continues from its last checkpoint, if there is one"
    for rank, exit_code in re.findall(r"rank\s*: (\d+).*?exitcode\s*: (-?\d+)", said, flags=re.DOTALL):
        # what a rank tells may only be that another one is gone: the one that told nothing is the cause
        if int(rank) not in told and int(exit_code) != -signal.SIGTERM:
            if int(exit_code) < 0:
                return f"rank {rank} was killed by signal {-int(exit_code)} (out of memory?), {continues}"
            raised = re.findall(
                r"^(?:\[rank\d+\]: ?)?(\w+(?:\.\w+)*(?:Error|Exception)\b.*)$", said, flags=re.MULTILINE
            )
            return f"rank {rank} ended with exit code {exit_code}, {continues}" + "".join(f": {e}" for e in raised[:1])
    for rank, error in told.items():
        return f"rank {rank} failed, {continues}: {error}"
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    return f"the ranks ended with exit code {code} and no result: {last}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End torchrun and its ranks; nothing when they have ended by themselves."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
