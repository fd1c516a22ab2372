"""A causal language model and its tokenizer from a local Hugging Face folder (optional package transformers)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mutransfer.errors import InputError
from mutransfer.evaluate.checkpoint import Checkpoint
from mutransfer.evaluate.text import Domain, place_of

LONGEST_DEFAULT = 2048  # tokens: a model of 128 thousand positions is not evaluated on windows of that many unasked


def open_huggingface(folder: Path, device: torch.device) -> Checkpoint:
    """The model (in float32, eval mode) and tokenizer that `save_pretrained` wrote to `folder`.

    Nothing is fetched, and no code from the folder is run.
    Raises InputError without transformers, for a folder that is no whole causal model, and for one without a tokenizer.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise InputError(
            f"{str(folder)!r} is a Hugging Face model, which needs the package transformers: pip install 'mutransfer[hf]'"
        ) from None
    transformers.utils.logging.set_verbosity_error()  # what matters of its warnings becomes an error below
    transformers.utils.logging.disable_progress_bar()
    model, loading = _load(
        folder, "model", lambda: transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    )  # fmt: skip
    absent = sorted(loading["missing_keys"])
    if absent:
        raise InputError(
            f"{str(folder)!r} has no weights for {absent[0]!r} of its {type(model).__name__} ({len(absent)} missing):"
            " they would be random; give the folder of a whole causal language model"
        )
    tokenizer = _load(
        folder, "tokenizer", lambda: transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    )
    files = {"tokenizer.json", *(getattr(tokenizer, "vocab_files_names", None) or {}).values()}
    if not any(path.name in files or path.name.startswith("tok") for path in folder.iterdir()):  # an empty one was made
        raise InputError(
            f"{str(folder)!r} holds no tokenizer ({', '.join(sorted(files))}): save the model's own there, with"
            " tokenizer.save_pretrained"
        )
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    longest = getattr(config, "max_position_embeddings", None)
    sizes = _sizes(model, config)
    model.config.use_cache = False  # keys and values of a window are never used again
    vocabulary = model.get_input_embeddings().weight.shape[0]

    def refuse() -> Domain:
        raise InputError(f"{str(folder)!r} does not say what it was trained on: give held-out files with --text")

    return Checkpoint(
        folder=folder,
        words=f"{type(model).__name__} of " + ", ".join(
            [*(f"{name} {sizes[name]:g}" for name in ("width", "depth") if name in sizes), f"{sizes['params']:,.0f} parameters"]
        ),
        model=model.float().to(device).eval(),
        device=device,
        encode=lambda text: encode_pretrained(tokenizer, text, vocabulary),
        context=min(longest, LONGEST_DEFAULT) if longest else LONGEST_DEFAULT,
        longest=longest,
        sizes=sizes,
        held_out=refuse,
        decode=lambda ids: tokenizer.decode(
            ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        ),
    )  # fmt: skip


def _load(folder: Path, what: str, load: Any) -> Any:
    try:
        return load()
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, KeyError, ImportError and what its parts raise
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(f"{str(folder)!r}: its {what} cannot be loaded ({type(error).__name__}: {said})") from None


def _sizes(model: Any, config: Any) -> dict[str, float]:
    width, depth = getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None)
    params = sum(p.numel() for p in model.parameters())  # a tied head is one tensor
    found: dict[str, float] = {"params": params}
    if isinstance(width, int):
        heads = {
            id(m.weight): m.weight
            for m in (model.get_input_embeddings(), model.get_output_embeddings())
            if m is not None
        }
        found |= {"width": width, "non_embedding": params - sum(weight.numel() for weight in heads.values())}
    if isinstance(depth, int):
        found["depth"] = depth
    return found


def encode_pretrained(tokenizer: Any, text: str, vocabulary: int) -> np.ndarray:
    """The ids as the tokenizer makes them by itself: with a token in front where the model was trained with one.

    That token is then the first, which is given; so all of the text is scored. Raises InputError for a character that the
    tokenizer replaces by its unknown token or drops (white space may be dropped: that is a changed text), and for ids
    beyond the model's vocabulary.
    """
    fast = bool(getattr(tokenizer, "is_fast", False))
    made = tokenizer(text, verbose=False, **({"return_offsets_mapping": True} if fast else {}))
    ids = np.asarray(made["input_ids"], dtype=np.int64)
    unknown = tokenizer.unk_token_id
    if unknown in (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ):  # GPT-2 calls its end of text so: it has no unknown token
        unknown = None
    missed = np.zeros(len(ids), dtype=bool) if unknown is None else ids == unknown
    if fast:
        spans = np.asarray(made["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        lost = _first_lost(tokenizer, text, spans, missed)
        if lost is not None:
            raise InputError(
                f"character {text[lost]!r} ({place_of(text, lost)}) is not known to the model's tokenizer:"
                " replace it there, or leave out this file"
            )
    elif missed.any():  # without offsets: what is before it says where
        before = tokenizer.decode(ids[: int(np.flatnonzero(missed)[0])])
        raise InputError(f"the model's tokenizer does not know what comes after {before[-40:]!r}: replace it there")
    if ids.size and int(ids.max()) >= vocabulary:
        raise InputError(
            f"token id {int(ids.max())}, but the model has {vocabulary} embeddings: its tokenizer is another"
        )
    return ids


def _first_lost(tokenizer: Any, text: str, spans: np.ndarray, missed: np.ndarray) -> int | None:
    """The offset of the first character of an unknown token, else of the first one, not white space, that has no token.

    `spans`: (N, 2), each token's characters [start, end); `missed`: (N,), which are the unknown token.
    """
    if missed.any():
        return int(spans[missed, 0].min())
    covers = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(covers, spans[:, 0], 1)
    np.add.at(covers, spans[:, 1], -1)
    bare = [int(i) for i in np.flatnonzero(np.cumsum(covers)[:-1] <= 0) if not text[i].isspace()]
    if not bare:
        return None
    # a tokenizer that drops a character gets the spans after it wrong, so that the one dropped may be before
    dropped = [c for c in set(text) if not c.isspace() and not tokenizer(c, add_special_tokens=False)["input_ids"]]
    return min((text.index(c) for c in dropped), default=bare[0])
