"""Floating-point operations of a model, counted from the matrix products it makes."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mutransfer.models import GPTConfig
from mutransfer.train.config import ModelConfig, RunConfig


@lru_cache(maxsize=256)
def flops_per_row(model: ModelConfig, row_shape: tuple[int, ...]) -> float:
    """FLOPs of the forward and backward pass of one row (a sequence, a table row, an image) of shape `row_shape`.

    Counts matrix products and convolutions, two operations per multiply-add, attention in full (no saving for the
    causal mask). Counted on the meta device: nothing is allocated or computed.
    """
    rows = 2  # batch norm refuses a single one
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        text = isinstance(model, GPTConfig)
        x = torch.zeros(rows, *row_shape, dtype=torch.int64 if text else torch.float32)
        labels = torch.zeros(x.shape if text else (rows,), dtype=torch.int64)
        network = RunConfig(model=model, recipe="sp").make_model()
        with FlopCounterMode(display=False) as counter:
            logits = network(x)
            F.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
    return counter.get_total_flops() / rows
