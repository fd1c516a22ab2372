"""One coordinate check as a worker's job."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

from mutransfer.quickstart.setting import Setting
from mutransfer.sweep.executor import Send


def check_recipe(setting: Setting, recipe: str, send: Send) -> dict[str, Any]:
    """The coordinate check of one parametrization as a note of the store: its report, and its picture in base64."""
    from mutransfer import plan
    from mutransfer.check import coord_check
    from mutransfer.data import TextData, load
    from mutransfer.models import GPT, gpt_loss

    data = load(setting.data, context=setting.context)
    assert isinstance(data, TextData)
    vocab_size, base = data.vocab_size, setting.check_widths[0]

    def make(width: int) -> GPT:
        return GPT(setting.model(width, vocab_size))

    def build(width: int) -> tuple[Any, Any]:
        made = plan(make, base={"width": base}, target={"width": width}, optimizer="adamw", recipe=recipe)
        model = made.initialize(make(width))
        return model, made.optimizer(model, lr=setting.check_lr, weight_decay=0.1)

    batches = [data.batch(i, 0, setting.check_rows, setting.context) for i in range(setting.check_steps)]

    def progress(done: int, total: int, text: str) -> None:
        send({"share": done / total, "text": text})

    report = coord_check(
        build, setting.check_widths, batches, gpt_loss, setting.check_steps, setting.check_seeds, progress=progress
    )
    with tempfile.TemporaryDirectory() as folder:
        picture = report.figure(Path(folder) / "check.png").read_bytes()
    return {"report": report.to_dict(), "picture": base64.b64encode(picture).decode()}
