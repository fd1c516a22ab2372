"""What the workers do: one training run, one coordinate check, one timing."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.quickstart.setting import Setting

if TYPE_CHECKING:
    from mutransfer.data import TextData


@functools.lru_cache(maxsize=1)
def text(setting: Setting) -> TextData:
    """The text, loaded once per process."""
    from mutransfer.data import TextData, load

    data = load(setting.data, context=setting.context)
    assert isinstance(data, TextData)
    return data


def train_point(setting: Setting, recipe: str, width: int, log2_lr: int) -> dict[str, Any]:
    """The row of one run: its point, loss (None when diverged) and cost."""
    from mutransfer.train import train

    data = text(setting)
    result = train(setting.run(recipe, width, log2_lr, data.vocab_size), data=data)
    return {
        "recipe": recipe, "width": width, "log2_lr": log2_lr, "seed": setting.seed, "status": result.status,
        "diverged_at": result.diverged_at, "loss": result.train_loss if result.status == "finished" else None,
        "params": result.params, "seconds": result.seconds,
    }  # fmt: skip


def step_seconds(setting: Setting) -> dict[int, float]:
    """Seconds of one training step at each width, measured now, beside whatever else this machine is doing."""
    from mutransfer.train import train

    data, found = text(setting), {}
    for width in sorted({*setting.widths, *setting.check_widths}):
        config = setting.run("sp", width, setting.log2_lrs[0], data.vocab_size, steps=3)
        train(config, data=data)  # the first steps allocate
        start = time.perf_counter()
        train(config, data=data)
        found[width] = (time.perf_counter() - start) / config.steps
    return found


def check_recipe(setting: Setting, recipe: str) -> tuple[dict[str, Any], bytes, str]:
    """The coordinate check of one parametrization: (report, picture, the plan's table at the largest width)."""
    from mutransfer import plan
    from mutransfer.check import coord_check
    from mutransfer.models import GPT, gpt_loss

    data = text(setting)
    base = setting.check_widths[0]

    def make(width: int) -> GPT:
        return GPT(setting.model(width, data.vocab_size))

    def planned(width: int) -> Any:
        return plan(make, base={"width": base}, target={"width": width}, optimizer="adamw", recipe=recipe)

    def build(width: int) -> tuple[Any, Any]:
        made = planned(width)
        model = made.initialize(make(width))
        return model, made.optimizer(model, lr=setting.check_lr, weight_decay=0.1)

    batches = [data.batch(i, setting.seed, setting.check_rows, setting.context) for i in range(setting.check_steps)]
    report = coord_check(build, setting.check_widths, batches, gpt_loss, setting.check_steps, setting.check_seeds)
    with tempfile.TemporaryDirectory() as folder:
        picture = report.figure(Path(folder) / "check.png").read_bytes()
    return report.to_dict(), picture, str(planned(setting.check_widths[-1]))
