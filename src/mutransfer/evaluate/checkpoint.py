"""A checkpoint ready to be evaluated: model, tokenizer, context, sizes, held-out text; of a run or a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mutransfer.data import CharTokenizer, TextData, Tokenizer, make_tokenizer
from mutransfer.errors import InputError
from mutransfer.evaluate.text import Domain, place_of
from mutransfer.evaluate.windows import Model
from mutransfer.models import GPTConfig
from mutransfer.train import RunConfig, Task, load_checkpoint, load_run, resolve_device
from mutransfer.train.checkpoint import CHECKPOINT


@dataclass(frozen=True)
class Checkpoint:
    """A language model with the tokenizer that it was trained on."""

    folder: Path
    words: str
    """What it is, in a few words."""
    model: Model
    device: torch.device
    encode: Callable[[str], np.ndarray]
    """Raises InputError naming a character that the tokenizer does not know."""
    context: int
    """That of an evaluation that says nothing of it."""
    longest: int | None
    """The longest context that the model can take; None where it knows no limit."""
    sizes: Mapping[str, float]
    """By the canonical names of loss laws: params (tied ones once), non_embedding, width, depth;
    of a run tokens, steps, batch."""
    held_out: Callable[[], Domain]
    """The validation split of the data it was trained on. Raises InputError where there is none."""
    decode: Callable[[np.ndarray], str] | None = None
    """The text of ids, for a tokenizer that may change a text; None for one that keeps it."""
    notes: tuple[str, ...] = ()


def open_checkpoint(path: str | Path, device: str = "cpu") -> Checkpoint:
    """The checkpoint in `path`: the folder of a run (or its checkpoint.pt), or of a Hugging Face model and its tokenizer.

    Raises InputError for anything else, for a model that is none of language, and for a run whose data is not what it was
    trained on.
    """
    path = Path(path)
    try:
        place = resolve_device(device)
    except RuntimeError:
        raise InputError(f"device={device!r} is unknown: choose from auto, cpu, cuda, cuda:0, mps") from None
    folder = path.parent if path.name == CHECKPOINT else path
    try:
        if (folder / CHECKPOINT).exists():
            return _run(folder, place)
        if (folder / "config.json").is_file():
            from mutransfer.evaluate.huggingface import open_huggingface

            return open_huggingface(folder, place)
    except torch.OutOfMemoryError:
        raise InputError(f"{str(folder)!r} does not fit into the memory of {place}: write device='cpu'") from None
    if not path.exists():
        raise InputError(f"{str(path)!r} does not exist: give the folder of a run or of a Hugging Face model")
    raise InputError(
        f"{str(path)!r} is not a checkpoint: a run's folder holds {CHECKPOINT}, that of a Hugging Face model config.json"
    )


def _run(folder: Path, device: torch.device) -> Checkpoint:
    saved = load_checkpoint(folder / CHECKPOINT)
    config, model, _ = load_run(folder, str(device))
    gpt = config.model
    if not isinstance(gpt, GPTConfig):
        raise InputError(f"{str(folder)!r} holds a {config.model_kind}: only a gpt predicts text")
    if saved["status"] == "diverged":
        raise InputError(f"{str(folder)!r} holds a run that diverged ({saved['reason']}): there is nothing to evaluate")
    tokenizer, held_out, notes = _text_of(folder, config, saved["data"])
    step = int(saved["step"])
    if step < config.steps:
        notes += (f"the run has made {step} of its {config.steps} updates",)
    sizes = _sizes(gpt, config.batch, model, step)
    return Checkpoint(
        folder=folder,
        words=f"gpt of width {gpt.width}, depth {gpt.depth}, {sizes['params']:,.0f} parameters, "
        f"{step} updates on {config.data} ({tokenizer.name} tokens)",
        model=model,
        device=device,
        encode=lambda text: encode_known(tokenizer, text),
        context=gpt.context,
        longest=gpt.context,
        sizes=sizes,
        held_out=held_out,
        notes=notes,
    )  # fmt: skip


def _sizes(m: GPTConfig, batch: int, model: nn.Module, step: int) -> dict[str, float]:
    params = sum(p.numel() for p in model.parameters())
    return {
        "params": params,
        "non_embedding": params - m.vocab_size * m.width * (1 if m.tied else 2),
        "width": m.width,
        "depth": m.depth,
        "tokens": step * batch * m.context,
        "batch": batch,
        "steps": step,
    }  # fmt: skip


def _text_of(
    folder: Path, config: RunConfig, fingerprint: str
) -> tuple[Tokenizer, Callable[[], Domain], tuple[str, ...]]:
    """The run's tokenizer, its held-out text, and what is to be said of them.

    The ids of characters are those of the data it was trained on, so that must be here, unchanged; a tokenizer that the
    run named (byte, gpt2, …) is the same everywhere, and then only the held-out text is missing.
    """
    data, missing = None, ""
    try:
        data = Task.of(config, torch.device("cpu")).data
    except InputError as error:
        missing = f"{str(folder)!r} needs the data it was trained on: {error}"
    if data is not None and data.fingerprint != fingerprint:
        missing = f"data {config.data!r} is not what {str(folder)!r} was trained on: restore it"
    if data is not None and not missing:
        assert isinstance(data, TextData)  # a Task of a gpt
        return data.tokenizer, lambda: _held_out(data), ()
    if config.tokenizer in (None, "char"):
        raise InputError(missing)

    def refuse() -> Domain:
        raise InputError(missing)

    return (
        make_tokenizer(config.tokenizer),
        refuse,
        (f"{missing}; texts are read with its tokenizer {config.tokenizer!r}",),
    )


def _held_out(data: TextData) -> Domain:
    """The validation split. Separators of documents carry no bytes of text, but are predicted like every token."""
    name, tokenizer = f"held-out {data.name}", data.tokenizer
    if tokenizer.name == "byte":
        return Domain(name, data.val, len(data.val))  # even where they are not UTF-8
    try:
        separator = getattr(tokenizer, "end_of_text", None)
        ids = data.val if separator is None else data.val[data.val != separator]
        size = len(tokenizer.decode(ids).encode("utf-8"))
    except InputError:  # ids alone, or a tokenizer that is not installed: perplexity needs neither
        size = None
    return Domain(name, data.val, size)


def encode_known(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of the text. Raises InputError with the first character that the tokenizer does not know, and its place."""
    if isinstance(tokenizer, CharTokenizer):
        known = set(tokenizer.characters)
        if set(text) - known:
            offset = next(i for i, character in enumerate(text) if character not in known)
            raise InputError(
                f"character {text[offset]!r} ({place_of(text, offset)}) is not among the {tokenizer.vocab_size} that the"
                " model was trained on: replace it there, or leave out this file"
            )
    return tokenizer.encode(text)
