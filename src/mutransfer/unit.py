"""The unit-scaled gauge: every weight has standard deviation 1, and its forward pass the multiplier (2407.17465; 2303.11257).

By the gauge with t = 1/σ this is the same training path as any other placement, in other numbers: u-μP's.
"""

from __future__ import annotations

from torch import nn

from mutransfer.axes import is_transposed_linear
from mutransfer.hooks import Hook
from mutransfer.laws import Law
from mutransfer.optimizers import OptimizerFacts
from mutransfer.rules import Ratios, gauge
from mutransfer.shapes import TensorShape


def unit_scaled(
    shape: TensorShape, law: Law, ratios: Ratios, facts: OptimizerFacts, model: nn.Module
) -> tuple[Ratios, list[Hook], str]:
    """The ratios at std 1, the hooks that carry σ, and the text; or a reason why this tensor keeps its own gauge.

    Only a weight that its module applies whole, and that starts random, can be moved: a Linear's, a convolution's, a lookup's.
    """
    sigma = law.std * ratios.std
    if len(shape.target_shape) < 2 or sigma <= 0:
        return ratios, [], ""
    modules = dict(model.named_modules())
    hooks = []
    for name in (shape.name, *shape.aliases):
        path, _, attribute = name.rpartition(".")
        module, owner = modules.get(path), modules.get(path.rpartition(".")[0])
        lookup = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        known = (
            lookup
            or isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
            or (module is not None and is_transposed_linear(module))
        )
        if attribute != "weight" or not known or isinstance(owner, nn.MultiheadAttention):
            return ratios, [], f"; not unit-scaled: no forward pass of its own takes {name}"
        hooks.append(Hook(path, "output" if lookup else "input", sigma, f"unit scale: std 1, forward × {sigma:.4g}"))
    moved = gauge(ratios, 1 / sigma, facts, of="multiplier")
    return (
        moved,
        hooks,
        f"; std 1 and forward × σ={sigma:.4g}: lr={moved.lr:g}" + ("" if moved.eps is None else f", eps={moved.eps:g}"),
    )
