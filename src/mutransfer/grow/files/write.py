"""The last step: a grown checkpoint goes to a new folder, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mutransfer.grow.files.checkpoint import Checkpoint
from mutransfer.grow.files.folder import new_folder
from mutransfer.grow.files.growing import Growing, nbytes

REPORT = "grow.json"


def write(checkpoint: Checkpoint, growing: Growing, out: Path, report: dict[str, Any] | None = None) -> dict[str, Any]:
    """Grow tensor by tensor into the new folder `out`, with the grow plan and where it came from in grow.json. Returns that record.

    At most one tensor of each checkpoint is in memory. Raises InputError where the folder cannot be made; then nothing is left of it.
    """
    record = {**checkpoint.provenance(), "noise": str(growing.noise), "seed": growing.seed}
    content = checkpoint.content(growing, record)
    said = {**record, **(report or {}), "grow_plan": growing.plan.to_dict()}
    with new_folder(out, nbytes(content)) as folder:
        (folder / REPORT).write_text(json.dumps(said, indent=1, ensure_ascii=False, default=str), encoding="utf-8")
        checkpoint.write(folder, content)
    return said
