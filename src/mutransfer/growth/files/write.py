"""The last step: a grown checkpoint goes to a new folder, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutransfer.commands.output import finite
from mutransfer.growth.files.checkpoint import Checkpoint
from mutransfer.growth.files.folder import new_folder
from mutransfer.growth.files.growing import Growing, nbytes

REPORT = "grow.json"


@dataclass(frozen=True)
class Prepared:
    """Everything that will be written, before any tensor is grown: `content` by file name, `record` for grow.json."""

    content: dict[str, Any]
    record: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return nbytes(self.content)


def prepare(checkpoint: Checkpoint, growing: Growing) -> Prepared:
    """What growing will write. Raises InputError for a state that has no rule, and for tensors that the plan does not know."""
    record = {**checkpoint.provenance(), "noise": str(growing.noise), "seed": growing.seed}
    return Prepared(checkpoint.content(growing, record), {**record, "grow_plan": growing.plan.to_dict()})


def write(
    checkpoint: Checkpoint, prepared: Prepared, out: Path, report: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Grow tensor by tensor into the new folder `out`; the grow plan, `report` and the source go to its grow.json. Returns that.

    One tensor is in memory at a time. Raises InputError where the folder cannot be made; then nothing is left of it.
    """
    said = {**(report or {}), **prepared.record}
    with new_folder(out, prepared.nbytes) as folder:
        (folder / REPORT).write_text(json.dumps(finite(said), indent=1, ensure_ascii=False), encoding="utf-8")
        checkpoint.write(folder, prepared.content)
    return said
