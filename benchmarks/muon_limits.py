"""How few matrix products an orthogonalisation no worse than torch.optim.Muon's can take, and what they cost on this machine.

    python -m benchmarks.muon_limits [WIDTH …]        # 128 512 by default

1. Polynomials. Every composition of odd cubics (2 products each) and quintics (3) with the best coefficients for an interval
   [lower, 1], `lower` chosen best, in exact arithmetic on the singular values of real gradients: the error ‖O − UVᵀ‖_F/√rank
   over that of torch's five steps (15 products), by number of products. Steeper polynomials do not pay: a chain of d products is
   at most √3 per product steeper at 0 (Chebyshev: a bounded odd polynomial of degree d has slope at most d there), and higher
   degrees have coefficients that bfloat16 cannot add up.
2. Products. What the least number takes at the rate that batched bfloat16 products of this size really reach, beside torch's step.
3. Rational iterations. One Cholesky inverse of all Gram matrices in float32, of which a rational step needs at least one per
   pole, beside torch's step.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.muon_step import DEPTH, chain, gradients
from mutransfer.data import TextData, load
from mutransfer.muon.coefficients import JORDAN, Triple

ROUNDS, LEVELS = 15, np.geomspace(1e-4, 3e-3, 12)


def error(steps: Sequence[Triple], spectra: Sequence[np.ndarray]) -> float:
    """Root mean square of 1 − σ after these steps, over matrices."""
    found = []
    for values in spectra:
        x = values.copy()
        for a, b, c in steps:
            x = x * (a + x * x * (b + x * x * c))
        found.append(np.mean((x - 1) ** 2))
    return math.sqrt(np.mean(found))


def polynomials(sets: dict[str, list[np.ndarray]]) -> int:
    """Print the best error by number of products; the least number that is no worse than torch's in every set."""
    torchs = {name: error([JORDAN] * 5, spectra) for name, spectra in sets.items()}
    least = 15
    for products in range(9, 16):
        orders = {
            degrees for n in range(3, 8) for degrees in itertools.product((3, 5), repeat=n)
            if sum(2 if degree == 3 else 3 for degree in degrees) == products
        }  # fmt: skip
        worst, degrees = min(
            (max(error(chain(order, low), spectra) / torchs[name] for name, spectra in sets.items()), order)
            for order in orders
            for low in LEVELS
        )
        print(f"  {products:2} products: {worst:.3f} of torch's error, degrees {degrees}")
        if worst <= 1 and products < least:
            least = products
    return least


def seconds(kinds: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, taking turns."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(ROUNDS + 2):
        for name, run in kinds.items():
            start = time.perf_counter()
            run()
            if turn > 1:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def main(widths: Sequence[int]) -> None:
    """Print all three for each width."""
    data = load("topics")
    assert isinstance(data, TextData)
    sets: dict[str, list[np.ndarray]] = {}
    for width, after in ((128, 0), (128, 20), (512, 0)):
        found = gradients(width, data, after)
        spectra = [torch.linalg.svdvals(g.double()) / g.double().norm() for g in found.values()]
        sets[f"{width}, after {after}"] = [values.numpy() for values in spectra]
    print(f"polynomials, gradients at {'; '.join(sets)} steps:")
    least = polynomials(sets)
    print(f"no worse than torch's: {least} products and more, of torch's 15")
    squares, rectangles = (
        4 * least,
        2 * 33 * least / 15,
    )  # per layer: q, k, v, o; up and down on Gram matrices as ours (33 for 15)
    for width in widths:
        grads = [g.clone() for g in gradients(width, data, 0).values()]
        params = [nn.Parameter(torch.randn_like(g)) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        muon = torch.optim.Muon(params, lr=1e-3)
        batch = torch.randn(min(48, 4 * DEPTH), width, width, dtype=torch.bfloat16)
        out = torch.empty_like(batch)
        gram = torch.randn(6 * DEPTH, width, width)
        gram = gram @ gram.mT / width + torch.eye(width)
        took = seconds({
            "torch": muon.step,
            "products": lambda batch=batch, out=out: torch.bmm(batch, batch, out=out),
            "rest": lambda grads=grads: [g.lerp(g, 0.5).to(torch.bfloat16).to(torch.float32).mul_(0.9) for g in grads],
            "inverse": lambda gram=gram: torch.cholesky_inverse(torch.linalg.cholesky(gram)),
        })  # fmt: skip
        each = took["products"] / len(batch)
        need = each * DEPTH * (squares + rectangles)
        print(
            f"width {width}: torch's step {1e3 * took['torch']:.0f} ms; {least} products at their measured rate {1e3 * need:.0f} ms"
            f" = at most {took['torch'] / need:.2f} times faster with nothing else at all; momentum, casts and updates"
            f" {1e3 * took['rest']:.0f} ms more = {took['torch'] / (need + took['rest']):.2f} times; one Cholesky inverse of all"
            f" Gram matrices {took['inverse'] / took['torch']:.2f} of torch's step"
        )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [128, 512])
