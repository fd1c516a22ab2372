"""One step of Muon on the hidden matrices of a 12-layer GPT: ours beside torch.optim.Muon, and how far each is from UVᵀ.

    python -m benchmarks.muon_step [WIDTH …]          # 128 512 by default; both thread counts, then the errors

Every configuration takes turns in one process; printed are medians and ratios. With one thread the clock is the CPU time of
that thread, so that other work on the machine counts little; with torch's default number of threads it is wall time, which
means something on an idle machine only. Errors are ‖O − UVᵀ‖_F / √rank, root mean square over matrices, the polar factor from a
float64 SVD, the gradients those of the same GPT on real text, at its start and after 20 steps of AdamW.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.data import TextData, load
from mutransfer.models import GPT, GPTConfig
from mutransfer.models.gpt import gpt_loss
from mutransfer.muon import Muon
from mutransfer.muon.coefficients import Triple, best_quintic
from mutransfer.muon.polar import multiplies_bfloat16

DEPTH, CONTEXT, BATCH = 12, 64, 16


def best_cubic(low: float, high: float) -> Triple:
    """The odd cubic with the least max |1 − p(σ)| on [low, high]: errors +E at both ends and −E at its maximum."""
    k = low * low + low * high + high * high
    top = math.sqrt(k / 3)
    scale = 2 / (k * top - top**3 + k * low - low**3)
    return scale * k, -scale, 0.0


def chain(degrees: Sequence[int], low: float, safety: float = 1.0) -> list[Triple]:
    """The best polynomial of each degree on where the singular values can be by then, from [low, 1]; `safety` as in Polar Express."""
    high, steps = 1.0, []
    for degree in degrees:
        a, b, c = best_cubic(low, high) if degree == 3 else best_quintic(low, high)
        s = 1.0 if len(steps) == len(degrees) - 1 else safety
        steps.append((a / s, b / s**3, c / s**5))
        low = low * (a + low * low * (b + low * low * c))
        high = 2 - low
    return steps


Made = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OURS: dict[str, dict[str, Any]] = {
    "ours (default)": {},
    "ours float32": {"dtype": "float32"},
    "ours Polar Express, 5 steps": {"coefficients": "polar-express"},
    "ours, 13 products": {
        "coefficients": [list(step) for step in chain((5, 3, 3, 5, 5), 6.4e-4, 1.01)]
    },  # muon_limits.py
    "ours Polar Express, 4 steps": {"coefficients": "polar-express", "ns_steps": 4},
}


def gpt(width: int, vocab_size: int) -> GPT:
    """The model whose hidden matrices are stepped."""
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=vocab_size, context=CONTEXT, width=width, depth=DEPTH, head_size=min(width, 64)))


def hidden(model: GPT) -> dict[str, nn.Parameter]:
    """The matrices inside the blocks, by name."""
    return {name: p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")}


def gradients(width: int, data: TextData, steps: int) -> dict[str, Tensor]:
    """Gradients of the hidden matrices on real text after some steps of AdamW."""
    model = gpt(width, data.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps + 1):
        optimizer.zero_grad()
        gpt_loss(model, data.batch(step, 0, BATCH, CONTEXT)).backward()
        if step < steps:
            optimizer.step()
    return {name: p.grad for name, p in hidden(model).items() if p.grad is not None}


def kinds(**settings: Any) -> dict[str, Made]:
    """Every configuration as a constructor with these settings in common."""
    made: dict[str, Made] = {"torch": lambda params: torch.optim.Muon(params, **settings)}
    for name, own in OURS.items():
        made[name] = lambda params, own=own: Muon(params, **settings, **own)
    return made


def times(width: int, data: TextData, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each kind, taking turns in changing order; the first 2 rounds warm up."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    grads = gradients(width, data, 0)
    optimizers = {}
    for name, made in kinds(lr=1e-3).items():
        params = [nn.Parameter(torch.randn_like(grad)) for grad in grads.values()]
        for p, grad in zip(params, grads.values(), strict=True):
            p.grad = grad.clone()
        optimizers[name] = made(params)
    found: dict[str, list[float]] = {name: [] for name in optimizers}
    order = list(optimizers)
    for number in range(rounds + 2):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            start = clock()
            optimizers[name].step()
            found[name].append(clock() - start)
    return {name: statistics.median(seconds[2:]) for name, seconds in found.items()}


def direction(made: Made, gradient: Tensor) -> Tensor:
    """What one step of this optimizer takes for the polar factor of a gradient: its step from zero, its scaling undone."""
    p = nn.Parameter(torch.zeros_like(gradient))
    p.grad = gradient.clone()
    made([p]).step()
    return -p.detach().double() / max(1.0, p.shape[0] / p.shape[1]) ** 0.5


def errors(matrices: list[Tensor]) -> dict[str, float]:
    """‖O − UVᵀ‖_F/√rank of each kind, root mean square over the matrices."""
    made = kinds(lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    squares: dict[str, list[float]] = {name: [] for name in made}
    for matrix in matrices:
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        rank = int((s > 1e-12 * s[0]).sum())
        polar = u[:, :rank] @ vh[:rank]
        for name, make in made.items():
            squares[name].append(float((direction(make, matrix) - polar).square().sum()) / rank)
    return {name: statistics.fmean(values) ** 0.5 for name, values in squares.items()}


def made_up(width: int) -> dict[str, list[Tensor]]:
    """Random matrices: of independent entries, and with singular values from 1 down to 10⁻⁶."""
    torch.manual_seed(0)
    shapes = [(width, width), (4 * width, width), (width, 4 * width)]
    steep = []
    for rows, columns in shapes:
        small = min(rows, columns)
        u, v = (torch.linalg.qr(torch.randn(n, small, dtype=torch.float64))[0] for n in (rows, columns))
        steep.append(((u * torch.logspace(0, -6, small, dtype=torch.float64)) @ v.T).float())
    return {"independent entries": [torch.randn(shape) for shape in shapes], "σ from 1 to 10⁻⁶": steep}


def print_times(widths: list[int], data: TextData) -> None:
    clock = "CPU time" if torch.get_num_threads() == 1 else "wall time"
    native = "multiplies" if multiplies_bfloat16("cpu") else "does not multiply"
    print(
        f"\n{torch.get_num_threads()} thread(s), {clock}, torch {torch.__version__}; this CPU {native} bfloat16 natively"
    )
    for width in widths:
        found = times(width, data, rounds=max(7, 4000 // width))
        print(f"width {width}: torch.optim.Muon {1e3 * found['torch']:.1f} ms")
        for name in OURS:
            print(f"  {name:28s} {1e3 * found[name]:8.1f} ms   {found['torch'] / found[name]:5.2f} × as fast")


def print_errors(widths: list[int], data: TextData) -> None:
    print("\nerror against a float64 polar factor, ‖O − UVᵀ‖_F/√rank")
    for width in widths:
        sets = dict(made_up(width))
        for steps in (0, 20):
            chosen = [g for name, g in gradients(width, data, steps).items() if int(name.split(".")[1]) % 4 == 1]
            sets[f"gradients after {steps} steps"] = chosen
        for title, matrices in sets.items():
            found = errors(matrices)
            print(f"width {width}, {title}: torch {found['torch']:.4f}")
            for name in OURS:
                print(f"  {name:28s} {found[name]:.4f}   {found[name] / found['torch']:6.3f} of torch's")


def main() -> None:
    arguments = sys.argv[1:]
    data = load("topics")
    assert isinstance(data, TextData)
    if arguments[:1] == ["--threads"]:  # a process of its own: leaving 2 threads for 1 keeps a spinning worker
        torch.set_num_threads(int(arguments[1]))
        print_times([int(width) for width in arguments[2:]], data)
        return
    widths = arguments or ["128", "512"]
    print(f"Muon on the hidden matrices of a {DEPTH}-layer GPT", flush=True)
    for threads in dict.fromkeys((1, torch.get_num_threads())):
        subprocess.run([sys.executable, "-m", "benchmarks.muon_step", "--threads", str(threads), *widths], check=True)
    print_errors([int(width) for width in widths], data)


if __name__ == "__main__":
    main()
