"""Which column is what: names as people, loggers and exports write them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mutransfer.errors import InputError

SIZES = (
    "width", "n_embd", "d_model", "hidden_size", "n_embed", "embed_dim", "model_dim", "hidden_dim", "dim", "model_width", "channels",
    "depth", "n_layer", "n_layers", "num_layers", "num_hidden_layers", "layers", "size", "model_size",
    "params", "n_params", "num_params", "parameters", "param_count", "non_embedding_params",
)  # fmt: skip
RATES = (
    "lr", "learning_rate", "base_lr", "max_lr", "peak_lr", "log2_lr", "log2lr", "lr_log2", "log2_learning_rate", "log10_lr", "log10_learning_rate",
    "lr_log10", "ln_lr", "optimizer_lr", "optim_lr", "eta",
)  # fmt: skip
SEEDS = ("seed", "random_seed", "rng_seed", "seeds", "train_seed")
LOSSES = (
    "loss", "train_loss", "final_loss", "final_train_loss", "val_loss", "valid_loss", "validation_loss", "eval_loss", "test_loss", "final_val_loss",
    "best_val_loss", "best_loss", "mean_loss", "training_loss",
)  # fmt: skip
STATES = ("status", "state", "run_state")
STEPS = ("step", "global_step", "iter", "iteration", "trainer_global_step", "update")
NAMES = ("key", "name", "run", "run_name", "run_id", "id")
KNOBS = (
    "recipe", "parametrization", "parameterization", "param", "variant", "method", "mup", "optimizer", "optim", "optimizer_name", "weight_decay", "wd",
    "batch", "batch_size", "warmup", "warmup_steps", "steps", "max_steps", "max_iters", "epochs", "init_std", "sigma", "std", "schedule", "lr_schedule",
    "scheduler", "clip", "grad_clip", "dropout", "beta1", "beta2", "betas", "momentum", "eps", "context", "block_size", "seq_len", "data", "dataset",
    "task", "model", "model_kind", "kind", "arch", "architecture", "head_size", "n_head", "n_heads", "num_heads", "output_mult", "input_mult", "alpha",
    "norm", "activation", "precision", "dtype", "tied", "bias", "decay", "noise", "nesterov", "tokens",
    "grow_noise", "grow_noise_kind", "grow_steps", "grow_lr", "grow_state", "grow_depth",
)  # fmt: skip
RESULTS = {*LOSSES, *STATES, *STEPS, *NAMES, "reason", "flops", "seconds"}
_PREFIX = re.compile(r"^(config|summary|params?|hparams|hyperparameters|args|cfg|model|metrics|data)[./]")


def knob(column: str | None) -> str:
    """What the hyperparameter is called in words: LR, or the column's own name."""
    return "LR" if column is None or plain(column) in RATES else column


def plain(name: str) -> str:
    """The name without a logger's prefix, in lower case, words joined by underscores."""
    text = str(name).strip().lower()
    while found := _PREFIX.match(text):
        text = text[found.end() :]
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")


def choose(what: str, given: str | None, known: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The columns that may be `what`, in order of preference; the one that the caller named, if so. Raises InputError for an unknown name."""
    if given is not None:
        if given in columns:
            return [given]
        same = [column for column in columns if plain(column) == plain(given)]
        if len(same) == 1:
            return same
        close = difflib.get_close_matches(given, columns, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"write one of {listed(columns)}"
        raise InputError(f"{what}={given!r}: the table has no such column; {hint}")
    return [column for name in known for column in columns if plain(column) == name]


def listed(names: Iterable[Any], most: int = 12) -> str:
    """Names joined by commas, the first few of many."""
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f" … ({len(every)} in all)" if len(every) > most else "")
