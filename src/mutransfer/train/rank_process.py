"""One rank of a run that `mutransfer.train.ranks.launch` started: torchrun executes this module in every process.

Standard output carries JSON lines, [kind, rank, value], to the process that called `launch`; all else goes to standard error.
"""

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError
from mutransfer.train.config import RunConfig
from mutransfer.train.loop import train
from mutransfer.train.ranks import leave

BAD_INPUT, FAILED, ORPHANED = 2, 1, 3


def main(path: Path) -> int:
    """Run this rank's part of the order in the JSON file at `path`; returns the exit code of the process."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    rank = int(os.environ["RANK"])

    def tell(kind: str, value: Any) -> None:
        # NaN and infinities as Python writes them: both ends of the pipe are Python
        channel.write(json.dumps([kind, rank, value]).encode() + b"\n")
        channel.flush()

    threading.Thread(target=_end_with_parent, daemon=True).start()
    order = json.loads(path.read_text())
    folder = None if order["folder"] is None else Path(order["folder"])
    try:
        result = train(
            RunConfig.from_dict(order["config"]),
            folder=folder,
            resume=order["resume"],
            until=order["until"],
            on_log=lambda point: tell("point", asdict(point)),
            small=None if order["small"] is None else Path(order["small"]),
        )
    except InputError as error:
        tell("input", str(error))
        return BAD_INPUT
    except Exception as error:
        tell("error", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        raise
    if rank == 0:
        tell("result", asdict(result))
    leave(0)
    return 0


def _end_with_parent() -> None:
    """Wait for the end of standard input, which is the end of the process that called `launch`."""
    while os.read(0, 4096):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
