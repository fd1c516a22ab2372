"""Everything that load accepts gives batches; everything else gives one line."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mutransfer.data import TextData, embedded_text, listing, load
from mutransfer.errors import InputError

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40


def load_text(name: object, **arguments: object) -> TextData:
    data = load(name, **arguments)
    assert isinstance(data, TextData)
    return data


def nanogpt(folder: Path, characters: str | None = None, ids: np.ndarray | None = None) -> Path:
    """A folder as nanoGPT's prepare.py leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.arange(1000, dtype=np.uint16) if ids is None else ids
    ids[:900].tofile(folder / "train.bin")
    ids[900:].tofile(folder / "val.bin")
    if characters is not None:
        table = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
        table["stoi"] = {c: i for i, c in enumerate(characters)}
        (folder / "meta.pkl").write_bytes(pickle.dumps(table))
    return folder


def test_the_embedded_text_is_english_and_python_on_every_machine() -> None:
    data = load_text("topics", context=1024)
    assert len(embedded_text()) > 400_000
    assert "assert" in data.tokenizer.decode(data.train)
    assert data.vocab_size < 200 and len(data.val) == pytest.approx(len(data.train) / 9, rel=0.01)
    assert data.fingerprint == load_text("topics").fingerprint != load_text("topics", tokenizer="byte").fingerprint
    x, y = data.batch(0, 0, 4, 16)
    assert x.max() < data.vocab_size and y.shape == (4, 16)
    assert len(list(data.val_batches(4, 64, n=3))) == 3


def test_a_python_without_the_embedded_text_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="comes without pydoc_data"):
        load("topics")


@pytest.mark.parametrize("tokenizer", ["char", "byte", None])
def test_a_text_file(tmp_path: Path, tokenizer: str | None) -> None:
    (tmp_path / "my.txt").write_text(TEXT)
    data = load_text(tmp_path / "my.txt", tokenizer=tokenizer)
    assert data.name == "my.txt"
    assert data.tokenizer.decode(np.concatenate([data.train, data.val])) == TEXT


def test_bytes_of_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(TEXT.encode() + b"\xe9")
    with pytest.raises(InputError, match="tokenizer='byte'"):
        load(tmp_path / "latin.txt")
    data = load_text(tmp_path / "latin.txt", tokenizer="byte")
    assert data.val[-1] == 0xE9


def test_nanogpt_folder_of_gpt2_tokens(tmp_path: Path) -> None:
    data = load_text(nanogpt(tmp_path / "openwebtext"))
    assert (data.vocab_size, data.tokenizer.name, len(data.train), len(data.val)) == (50257, "gpt2", 900, 100)
    assert isinstance(data.train, np.memmap)
    x, y = data.batch(0, 0, 4, 32)
    assert torch.equal(y, x + 1)


def test_nanogpt_data_folder_serves_known_names(root: Path) -> None:
    nanogpt(root / "openwebtext")
    data = load_text("openwebtext")
    assert (data.name, data.vocab_size, len(data.train)) == ("openwebtext", 50257, 900)
    assert next(row for row in listing() if row.name == "openwebtext").present


def test_nanogpt_folder_of_characters(tmp_path: Path) -> None:
    data = load_text(nanogpt(tmp_path / "shakespeare_char", "abc", np.arange(1000, dtype=np.uint16) % 3))
    assert (data.vocab_size, data.tokenizer.decode(data.train[:4])) == (3, "abca")


class Attack:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("attacked"),))


@pytest.mark.parametrize("content", [pickle.dumps(Attack()), b"junk", pickle.dumps({"itos": {0: "b", 1: "a"}})])
def test_a_hostile_table_of_characters_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (nanogpt(tmp_path / "data") / "meta.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"meta\.pkl") as caught:
        load(tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "attacked").exists()


def test_the_fingerprint_of_a_plain_folder_follows_its_tokens(tmp_path: Path) -> None:
    ids = np.arange(1000, dtype=np.uint16)
    first = load_text(nanogpt(tmp_path / "a", ids=ids)).fingerprint
    assert first == load_text(nanogpt(tmp_path / "b", ids=ids)).fingerprint
    ids[3] = 7
    assert first != load_text(nanogpt(tmp_path / "c", ids=ids)).fingerprint


def test_a_bare_token_file(tmp_path: Path) -> None:
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    data = load_text(tmp_path / "tokens.bin", vocab_size=1000)
    assert (data.vocab_size, len(data.train), len(data.val)) == (1000, 900, 100)
    assert load_text(tmp_path / "tokens.bin").vocab_size == 50257


@pytest.fixture
def corner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one file or folder per mistake."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "short.txt").write_text("abcdefghij" * 10)
    (tmp_path / "model.pt").write_bytes(b"PK\0\0" * 10)
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "nothing").mkdir()
    nanogpt(tmp_path / "tokens")
    nanogpt(tmp_path / "high", ids=np.full(1000, 60000, dtype=np.uint16))
    (nanogpt(tmp_path / "half") / "val.bin").unlink()
    (nanogpt(tmp_path / "torn") / "meta.json").write_text('{"tokenizer": {"name": "byte"}, "train_tokens": 899}')
    (nanogpt(tmp_path / "broken") / "meta.json").write_text("{")
    return tmp_path


@pytest.mark.usefixtures("corner")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name=""), "data '' is empty"),
        (dict(name="topic"), "did you mean 'topics'"),
        (dict(name="nonsense"), "write one of topics"),
        (dict(name="nowhere/my.txt"), "does not exist"),
        (dict(name="my.txt"), "does not exist"),
        (dict(name="empty.txt"), "is empty"),
        (dict(name="empty.txt", tokenizer="byte"), "is empty"),
        (dict(name="short.txt", context=64), r"validation split. has 10 tokens, too few for context=64"),
        (dict(name="one.txt", context=1), "training split. is empty"),
        (dict(name="short.txt", context=-1), "context=-1"),
        (dict(name="short.txt", tokenizer="word"), "'word' is unknown"),
        (dict(name="model.pt"), "is not text"),
        (dict(name="odd.bin"), "no whole number of uint16"),
        (dict(name="empty.bin"), "is empty"),
        (dict(name="nothing"), "has no train.bin"),
        (dict(name="half"), "has no val.bin"),
        (dict(name="high"), "token id 60000, outside its vocabulary of 50257"),
        (dict(name="tokens", vocab_size=10), "token id 899, outside its vocabulary of 10"),
        (dict(name="tokens", tokenizer="char"), "does not say its characters"),
        (dict(name="tokens", tokenizer="gpt2", vocab_size=50304), "not vocab_size=50304"),
        (dict(name="short.txt", vocab_size=65), "leave out vocab_size=65"),
        (dict(name="torn"), "900 tokens, not the 899"),
        (dict(name="torn", tokenizer="gpt2"), "was tokenized with 'byte', not 'gpt2'"),
        (dict(name="broken"), "damaged"),
        (dict(name="x" * 400), "cannot be read|write one of"),
        (dict(name="digits", tokenizer="char"), "not text"),
        (dict(name="openwebtext"), "mutransfer data prepare openwebtext"),
        (dict(name="wikitext-2", tokenizer="byte"), "--tokenizer byte"),
        (dict(name="cifar100"), r"put cifar-100-binary\.tar\.gz"),
        (dict(name="shakespeare", folder="elsewhere"), "elsewhere"),
        (dict(name="topics", tokenizer="chars"), "'chars' is unknown"),
    ],
)
def test_wrong_calls_give_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(**arguments)
    assert "\n" not in str(caught.value)
