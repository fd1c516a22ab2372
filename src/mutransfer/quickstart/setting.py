"""What the quickstart runs: one small GPT at several widths, under the standard parametrization and under μP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mutransfer.models import GPTConfig
    from mutransfer.train import RunConfig

RECIPES = ("sp", "mup")
TITLES = {"sp": "standard parametrization", "mup": "μP"}


@dataclass(frozen=True)
class Setting:
    """Sizes that show the effect within four minutes on two cores; the first width of each is the base of μP."""

    check_widths: tuple[int, ...] = (32, 64, 128, 256)
    check_steps: int = 3
    check_seeds: int = 3
    check_rows: int = 4
    check_lr: float = 2**-7

    widths: tuple[int, ...] = (32, 64, 128, 256)
    log2_lrs: tuple[int, ...] = (-9, -8, -7, -6, -5)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 100
    warmup: int = 10
    batch: int = 16

    context: int = 64
    depth: int = 2
    head_size: int = 16
    init_std: float = 0.08
    data: str = "topics"

    @property
    def base(self) -> int:
        """The width that is tuned."""
        return self.widths[0]

    def model(self, width: int, vocab_size: int) -> GPTConfig:
        """The GPT of this width."""
        from mutransfer.models import GPTConfig

        return GPTConfig(
            vocab_size=vocab_size, context=self.context, width=width, depth=self.depth, head_size=self.head_size,
            init_std=self.init_std,
        )  # fmt: skip

    def runs(self, vocab_size: int) -> list[RunConfig]:
        """Every point of the grid; at the base width both parametrizations are one model, and are run once."""
        from mutransfer.train import RunConfig

        return [
            RunConfig(
                model=self.model(width, vocab_size), base={"width": self.base}, recipe=recipe, lr=2.0**log2_lr,
                weight_decay=0.1, data=self.data, batch=self.batch, steps=self.steps,
                warmup=min(self.warmup, self.steps), clip=1.0, seed=seed, val_batches=0, log_every=5, device="cpu",
            )
            for recipe in RECIPES for width in self.widths for log2_lr in self.log2_lrs for seed in self.seeds
        ]  # fmt: skip
