"""How long the coordinate check takes, picture included: a 4-layer GPT at widths 64…1024, 3 seeds, 3 steps, 4×64 tokens.

    python -m benchmarks.coord_check

Prints the ratio of its time to the limit of 20 s on two cores, and to bare training steps of the same runs in the same process.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mutransfer.check import coord_check
from mutransfer.models import GPT, GPTConfig

WIDTHS, SEEDS, STEPS, LIMIT, VOCAB = [64, 128, 256, 512, 1024], 3, 3, 20.0, 256


def build(width: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A GPT in μP, its read-out multiplier absorbed, with AdamW."""
    model = GPT(GPTConfig(vocab_size=VOCAB, context=64, width=width, depth=4, head_size=16, init_std=0.02))
    ratio = width / WIDTHS[0]
    hidden, rest, head = [], [], []
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("head"):
                p.mul_(1 / ratio)
                head.append(p)
            elif p.dim() == 2 and name.startswith("blocks"):
                p.mul_(ratio**-0.5 * 4)
                hidden.append(p)
            else:
                rest.append(p)
    lr = 2**-9
    groups: list[dict[str, Any]] = [
        dict(params=hidden, lr=lr / ratio),
        dict(params=head, lr=lr / ratio),
        dict(params=rest, lr=lr),
    ]
    return model, torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-12)


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Next-token cross-entropy."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def bare(batches: list[Any]) -> float:
    """Seconds of the same training steps without any recording."""
    start = time.perf_counter()
    for width in WIDTHS:
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            model, optimizer = build(width)
            for batch in batches:
                optimizer.zero_grad()
                loss(model, batch).backward()
                optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    """Print the seconds and ratios."""
    generator = torch.Generator().manual_seed(0)
    batches = [tuple(torch.randint(VOCAB, (2, 4, 64), generator=generator)) for _ in range(STEPS)]
    plain = bare(batches)
    start = time.perf_counter()
    report = coord_check(build, WIDTHS, batches, loss, steps=STEPS, seeds=SEEDS)
    with tempfile.TemporaryDirectory() as folder:
        report.figure(Path(folder) / "check.png")
    seconds = time.perf_counter() - start
    print(report.words())
    print(f"check with picture {seconds:.1f} s on {torch.get_num_threads()} threads: {seconds / LIMIT:.2f} of the limit of {LIMIT:g} s, "
          f"{seconds / plain:.2f} × the bare training steps ({plain:.1f} s)")  # fmt: skip


if __name__ == "__main__":
    main()
