"""The known data sets: what they are, where they come from, and whether they are on this machine."""

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mutransfer.data.documents import SUFFIXES
from mutransfer.errors import InputError


@dataclass(frozen=True)
class Known:
    """One data set that can be loaded by name.

    `files` maps the names of the published file to its published checksum ("" where an unpacked folder is meant);
    `url` is where the first of them is. `hub` is (repository, config, name of its validation split) on the Hugging Face
    hub. `whole` means that it is small enough to be read from the published file at every start. `separate` puts an
    end-of-text token (or a newline) after each document.
    """

    name: str
    kind: str  # "text", "table" or "images"
    size: str
    source: str
    url: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    hub: tuple[str, str | None, str | None] | None = None
    tokenizer: str = ""
    embedded: bool = False
    whole: bool = True
    separate: bool = False


_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_WIKITEXT = "Salesforce/wikitext"

KNOWN = {
    known.name: known
    for known in (
        Known(
            "topics",
            "text",
            "465 kB",
            "the Python language reference inside every CPython",
            tokenizer="char",
            embedded=True,
        ),
        Known("digits", "table", "1,797 rows × 64", "scikit-learn", embedded=True),
        Known("digits-images", "images", "1,797 images 1×8×8", "scikit-learn", embedded=True),
        Known(
            "shakespeare",
            "text",
            "1.1 MB",
            "Tiny Shakespeare, github.com/karpathy/char-rnn",
            url=_SHAKESPEARE,
            tokenizer="char",
            files={"tinyshakespeare.txt": "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
        ),
        Known(
            "wikitext-2",
            "text",
            "2.4 M gpt2 tokens",
            f"hf.co/datasets/{_WIKITEXT}",
            tokenizer="gpt2",
            hub=(_WIKITEXT, "wikitext-2-raw-v1", "validation"),
        ),
        Known(
            "wikitext-103",
            "text",
            "118 M gpt2 tokens",
            f"hf.co/datasets/{_WIKITEXT}",
            tokenizer="gpt2",
            hub=(_WIKITEXT, "wikitext-103-raw-v1", "validation"),
            whole=False,
        ),
        Known(
            "openwebtext",
            "text",
            "9 G gpt2 tokens",
            "hf.co/datasets/Skylion007/openwebtext",
            tokenizer="gpt2",
            hub=("Skylion007/openwebtext", None, None),
            whole=False,
            separate=True,
        ),
        Known(
            "fineweb-edu",
            "text",
            "10 G gpt2 tokens",
            "hf.co/datasets/HuggingFaceFW/fineweb-edu (sample-10BT)",
            tokenizer="gpt2",
            hub=("HuggingFaceFW/fineweb-edu", "sample-10BT", None),
            whole=False,
            separate=True,
        ),
        Known(
            "covertype",
            "table",
            "581,012 rows × 54",
            "UCI Covertype, as scikit-learn's mirror serves it",
            url="https://ndownloader.figshare.com/files/5976039",
            files={"covtype.data.gz": "sha256:614360d0257557dd1792834a85a1cdebfadc3c4f30b011d56afee7ffb5b15771"},
        ),
        Known(
            "cifar100",
            "images",
            "60,000 images 3×32×32",
            "www.cs.toronto.edu/~kriz/cifar.html",
            url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            files={
                "cifar-100-binary.tar.gz": "md5:03b5dce01913d631647c71ecec9e9cb8",
                "cifar-100-python.tar.gz": "md5:eb9058c3a382ffc7106e4002c42a8d85",
                "cifar-100-binary": "",
                "cifar-100-python": "",
            },
        ),
    )
}


def find_known(name: str) -> Known:
    """The data set called `name`; an unknown name is an InputError that suggests the closest one."""
    if name in KNOWN:
        return KNOWN[name]
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(KNOWN)}"
    raise InputError(f"data {name!r} is neither a known data set nor an existing file or folder: {hint}")


def data_root(folder: str | Path | None = None) -> Path:
    """The folder of all data: `folder`, else the environment variable MUTRANSFER_DATA, else the user's cache folder."""
    chosen = folder or os.environ.get("MUTRANSFER_DATA")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(cache) if cache else Path.home() / ".cache") / "mutransfer" / "data"


def read_meta(folder: Path) -> dict[str, Any] | None:
    """`meta.json` of a prepared folder, None where there is none; a damaged one is an InputError."""
    path = folder / "meta.json"
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        meta = None
    if not isinstance(meta, dict):
        raise InputError(f"{str(path)!r} is damaged: delete the folder and prepare the data again")
    return meta


def prepared_folders(known: Known, root: Path) -> dict[str, Path]:
    """Finished folders of a data set by what is inside: a tokenizer's name, or "arrays"."""
    home = root / known.name
    if not home.is_dir():
        return {}
    return {
        path.name: path for path in sorted(home.iterdir()) if path.name[0] != "." and (path / "meta.json").is_file()
    }


def holds_tokens(folder: Path) -> bool:
    """Whether nanoGPT's own `train.bin` and `val.bin` lie in `folder`: its `data` folder can serve as the data folder."""
    return (folder / "train.bin").is_file() and (folder / "val.bin").is_file()


def raw_path(known: Known, root: Path) -> Path | None:
    """The published file, or the folder of text files, that a person (or a download) has put under `root`."""
    home = root / known.name
    for name in known.files:
        for place in (home / name, root / name):
            if place.exists():
                return place
    if known.hub and home.is_dir() and any(path.suffix in SUFFIXES for path in home.iterdir()):
        return home
    return None


def raw_advice(known: Known, root: Path) -> str:
    """The line that says which local file replaces the network, and where to put it."""
    if known.files:
        return f"put {next(iter(known.files))} (from {known.url}) into {root / known.name}, or pass source=PATH"
    return f"put its text as {', '.join(SUFFIXES)} files into {root / known.name}, or pass source=PATH"


@dataclass(frozen=True)
class DataInfo:
    """One line of `listing`: `present` says whether `load(name)` works now; `prepared` names the tokenized forms."""

    name: str
    kind: str
    size: str
    source: str
    present: bool
    prepared: tuple[str, ...]
    folder: Path | None


def listing(folder: str | Path | None = None) -> tuple[DataInfo, ...]:
    """Every known data set with its size, its source and whether it is on this machine; touches no network."""
    root = data_root(folder)
    rows = []
    for known in KNOWN.values():
        prepared = prepared_folders(known, root)
        raw = raw_path(known, root)
        tokens = known.kind == "text" and not known.embedded and holds_tokens(root / known.name)
        if known.embedded:
            needs = "pydoc_data.topics" if known.kind == "text" else "sklearn"
            present = _importable(needs)
        else:
            present = bool(prepared) or tokens or (raw is not None and known.whole)
        place = root / known.name if prepared or tokens else raw
        rows.append(DataInfo(known.name, known.kind, known.size, known.source, present, tuple(prepared), place))
    return tuple(rows)


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
