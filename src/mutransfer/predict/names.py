"""Which column holds which variable, and in what unit: names as papers, loggers and spreadsheets write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mutransfer.predict.units import unit_of
from mutransfer.rows.columns import LOSSES, RATES

KNOWN: dict[str, tuple[str, ...]] = {
    "params": (
        "params", "n_params", "num_params", "parameters", "n_parameters", "num_parameters", "param_count", "parameter_count", "model_params",
        "params_total", "parameters_total", "trainable_params", "trainable_parameters", "all_params", "nparams", "model_size", "modelsize", "size",
    ),
    "non_embedding": (
        "non_embedding_params", "non_embedding_parameters", "non_embedding", "nonembedding", "non_emb", "no_emb", "nonemb", "hidden_params",
    ),
    "flops_per_token": (
        "flops_per_token", "flop_per_token", "flops_token", "non_embedding_flops_per_token", "flops_per_tok", "compute_per_token",
    ),
    "width": (
        "width", "n_embd", "d_model", "dmodel", "hidden_size", "n_embed", "embed_dim", "embedding_dim", "emb_dim", "model_dim", "hidden_dim", "dim",
        "model_width", "channels", "d_embed", "embedding_size",
    ),
    "depth": ("depth", "n_layer", "n_layers", "num_layers", "num_hidden_layers", "layers", "nlayers", "n_blocks", "num_blocks", "model_depth"),
    "tokens": (
        "tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "total_tokens", "token_count", "ntokens", "dataset_tokens", "data_tokens",
        "dataset_size", "training_dataset_size", "train_dataset_size", "training_set_size", "train_set_size", "data_size", "training_data_size",
        "train_size", "training_size", "n_train", "samples", "n_samples", "num_samples", "training_samples", "train_samples", "examples",
    ),
    "unique_tokens": (
        "unique_tokens", "tokens_unique", "n_unique_tokens", "distinct_tokens", "unique_data", "data_unique", "unique", "unique_samples", "unique_dataset_size",
    ),
    "compute": (
        "compute", "flops", "flop", "total_flops", "training_flops", "train_flops", "training_flop", "train_flop", "training_compute", "train_compute",
        "total_compute", "compute_flops", "compute_flop", "flops_total", "nflops", "flop_count", "compute_budget", "flop_budget", "flops_budget",
    ),
    "batch": (
        "global_batch_size", "batch", "batch_size", "total_batch_size", "train_batch_size", "batchsize", "gbsz", "gbs", "bsz", "bs", "global_batch",
    ),
    "batch_tokens": ("batch_tokens", "batch_size_tokens", "tokens_per_batch", "tokens_per_step", "tokens_per_update", "batch_size_in_tokens", "tokens_per_iter"),
    "steps": (
        "steps", "max_steps", "n_steps", "num_steps", "total_steps", "train_steps", "training_steps", "max_iters", "iterations", "iters", "train_iters",
        "num_iterations", "updates", "num_updates", "optimizer_steps", "gradient_steps",
    ),
    "lr": RATES,
    "epochs": ("epochs", "n_epochs", "num_epochs", "num_train_epochs", "max_epochs"),
    "context": (
        "context", "context_length", "seq_len", "block_size", "sequence_length", "max_seq_len", "n_ctx", "ctx", "ctx_len", "seq_length", "context_size",
        "max_seq_length", "n_positions", "max_position_embeddings", "seqlen",
    ),
    "vocab": ("vocab_size", "vocab", "n_vocab", "num_vocab", "padded_vocab_size", "vocabulary", "vocabulary_size"),
    "tied": ("tied", "tie_embeddings", "tie_word_embeddings", "tied_embeddings", "weight_tying"),
}  # fmt: skip
LETTERS = {"N": "params", "D": "tokens", "C": "compute", "U": "unique_tokens", "B": "batch", "L": "loss"}
"""One letter stands for a variable only in the papers' own capitals."""
WITH_UNIT = {
    "params",
    "non_embedding",
    "flops_per_token",
    "tokens",
    "unique_tokens",
    "compute",
    "batch",
    "batch_tokens",
    "steps",
}
_FILLERS = {"n", "num", "number", "of", "nr", "total", "training", "train", "trained", "count", "the", "model", "final", "seen", "consumed", "processed", "used", "max", "amount"}  # fmt: skip
_LOOKUP = {name: (variable, rank) for variable, names in KNOWN.items() for rank, name in enumerate(names)}
_WITHOUT = re.compile(r"(^|_)(non?|wo|without|excl|excluding|ex|not)_?(emb|embed|embd|embedding|embeddings)($|_)")
_SIZE_WORDS = {"n", "params", "param", "parameters", "parameter", "size"}
_PREFIX = re.compile(
    r"^(config|summary|hparams|hyperparameters|args|cfg|model|metrics|data|params?)[./](?=.)", re.IGNORECASE
)

_LOSS = {"loss", "nll", "xent", "crossentropy", "ce", "bpb", "bpc", "bpt", "ppl", "perplexity"}
_NOT_A_LOSS = {
    "std", "sd", "se", "sem", "stderr", "err", "var", "variance", "scale", "scaling", "ratio", "aux", "auxiliary", "z", "balance", "balancing", "slope",
    "gap", "diff", "delta", "spike", "spikes", "weight", "coef", "coefficient", "grad", "count", "ci", "low", "high", "lower", "upper", "unit", "pred",
    "predicted", "prediction", "fit", "fitted", "target", "function", "fn", "type", "name", "step", "steps", "change", "noise", "mask", "irreducible",
}  # fmt: skip
_SPLITS = ("train", "training", "final", "val", "valid", "validation", "eval", "evaluation", "dev", "heldout", "test")


@dataclass(frozen=True)
class Known:
    """What a column's name says: the variable, the unit (None where it says none), and how usual the name is (0 first)."""

    variable: str
    unit: float | None
    rank: int


def words(column: str) -> list[str]:
    """The words of a name without a logger's prefix: "config/nParams (M)" gives n, Params, M."""
    text = column.strip()
    while found := _PREFIX.match(text):
        text = text[found.end() :]
    return _split(text)


def _split(text: str) -> list[str]:
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)
    return re.findall(r"\d+\^\d+|\d+(?:\.\d+)?[eE]\+?\d+|[A-Za-z]+|\d+", text)


def known(column: str) -> Known | None:
    """The variable whose name this is, if any."""
    found = _known(words(column)) or _known(_split(column.strip()))  # "params/total": the prefix is the name
    _, mark, last = column.strip().rpartition("/")
    if found is None and mark and (inner := _known(_split(last))) is not None:
        found = Known(inner.variable, inner.unit, inner.rank + 30)  # a logger's own folder: "throughput/total_tokens"
    return found


def _known(parts: list[str]) -> Known | None:
    for cut in range(len(parts) + 1):  # the longest name first: the rest, at the end or at the start, must be a unit
        for name, rest in ((parts[: len(parts) - cut], parts[len(parts) - cut :]), (parts[cut:], parts[:cut])):
            found = _variable(name)
            if found is None and not name and rest:
                found = ("compute", 50)  # "exaflops", "PF-days": nothing but a unit of compute
                if not any(re.search(r"flop|pf", part.lower()) for part in rest):
                    continue
            if found is None:
                continue
            if not rest:
                return Known(found[0], None, found[1])
            unit = unit_of(rest)
            if unit is not None and found[0] in WITH_UNIT:
                return Known(found[0], unit, found[1] + 1)
    return None


def _variable(parts: Sequence[str]) -> tuple[str, int] | None:
    if len(parts) == 1 and parts[0] in LETTERS:
        variable = LETTERS[parts[0]]
        return None if variable == "loss" else (variable, 0)
    lower = [part.lower() for part in parts]
    name = "_".join(lower)
    if name in _LOOKUP:
        return _LOOKUP[name]
    if without := _WITHOUT.search(name):
        rest = {word for word in re.sub(_WITHOUT, "_", name).split("_") if word} - (_FILLERS - {"n"})
        return ("non_embedding", 10) if without and rest <= _SIZE_WORDS else None
    rest = "_".join(word for word in lower if word not in _FILLERS)
    if rest in _LOOKUP and rest not in ("size", "epochs"):  # total_epochs: often stretches between checkpoints
        variable, rank = _LOOKUP[rest]
        return variable, rank + 20
    if parts and parts[0] in LETTERS and parts[0] != "L" and all(word in _FILLERS for word in lower[1:]):
        return LETTERS[parts[0]], 15  # N_total
    return None


def loss_columns(columns: Sequence[str]) -> list[str]:
    """The columns that may be the loss, the most usual name first, in an order that does not depend on the table's."""
    ranked: list[tuple[int, int, str, str]] = []
    for column in columns:
        lower = _loss_words(column)
        if "L" in words(column) and len(lower) == 1:
            ranked.append((1, 0, "", column))
            continue
        named = set(lower) & _LOSS
        if not named or set(lower) & _NOT_A_LOSS:
            continue
        name = "_".join(lower)
        usual = LOSSES.index(name) if name in LOSSES else len(LOSSES)
        kind = 2 if named & {"ppl", "perplexity"} else 1 if named & {"bpb", "bpc", "bpt"} else 0
        split = next((i for i, one in enumerate(_SPLITS) if one in lower), -1)
        ranked.append((kind * 100 + usual, split, name, column))
    return [column for *_, column in sorted(ranked)]


def _loss_words(column: str) -> list[str]:
    lower = [part.lower() for part in words(column)]
    text = " ".join("loss" if word == "losses" else word for word in lower)
    text = (
        text.replace("cross entropy", "crossentropy")
        .replace("bits per byte", "bpb")
        .replace("bits per character", "bpc")
    )
    text = re.sub(r"bits per (char|token)", "bpc", text)
    return text.split()


def loss_unit_named(column: str) -> str | None:
    """The unit that a loss column's name says: perplexity, bits_per_byte, bits, nats, or None."""
    said = set(_loss_words(column))
    if said & {"ppl", "perplexity"}:
        return "perplexity"
    if "bpb" in said:
        return "bits_per_byte"
    return "bits" if said & {"bpc", "bpt", "bits", "bit"} else "nats" if said & {"nats", "nat"} else None
