"""prepare makes the same tokens as the text itself, complete or not at all."""

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mutransfer.data import TextData, listing, load, prepare
from mutransfer.data.catalog import KNOWN
from mutransfer.errors import InputError

TEXT = "".join(f"line {i}: the quick brown fox\n" for i in range(300))


def load_text(name: str, **arguments: object) -> TextData:
    data = load(name, **arguments)
    assert isinstance(data, TextData)
    return data


def source(tmp_path: Path, form: str) -> Path:
    """TEXT as a local source in one of the accepted forms."""
    path = tmp_path / f"source.{form}"
    if form == "txt":
        path.write_text(TEXT)
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"text": line, "url": "x"}) + "\n\n" for line in TEXT.splitlines(True)))
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": TEXT.splitlines(True)}), path)
    return path


def test_the_large_file_form_equals_the_text_in_memory(tmp_path: Path, root: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    done = prepare("shakespeare", source=tmp_path / "text.txt")
    stored, memory = load_text("shakespeare"), load_text(str(tmp_path / "text.txt"))
    assert done.folder == root / "shakespeare" / "char" and isinstance(stored.train, np.memmap)
    assert np.array_equal(stored.train, memory.train) and np.array_equal(stored.val, memory.val)
    assert stored.fingerprint == memory.fingerprint
    assert stored.tokenizer.decode(np.concatenate([stored.train, stored.val])) == TEXT
    assert done.meta["train_tokens"] == len(stored.train) == len(TEXT) * 9 // 10
    assert sorted(p.name for p in done.folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]
    assert [p.name for p in (root / "shakespeare").iterdir()] == ["char"]


@pytest.mark.parametrize("form", ["txt", "jsonl", "parquet"])
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_every_local_form_gives_the_same_text(tmp_path: Path, form: str, tokenizer: str) -> None:
    prepare("wikitext-2", source=source(tmp_path, form), tokenizer=tokenizer)
    data = load_text("wikitext-2", tokenizer=tokenizer)
    assert data.tokenizer.decode(np.concatenate([data.train, data.val])) == TEXT


def test_documents_are_separated_where_the_data_has_documents(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n' * 10)
    prepare("openwebtext", source=path, tokenizer="byte")
    data = load_text("openwebtext")  # the only form there is, so the tokenizer need not be named
    assert data.tokenizer.decode(np.concatenate([data.train, data.val])) == "one\ntwo\n" * 10


def test_a_folder_with_its_own_validation_split_keeps_it(root: Path) -> None:
    home = root / "wikitext-2"
    home.mkdir(parents=True)
    (home / "wiki.train.tokens").write_text(TEXT)
    (home / "wiki.valid.tokens").write_text("the quick fox\n" * 9)
    (home / "wiki.test.tokens").write_text("left out")
    raw = load_text("wikitext-2", tokenizer="char")
    prepare("wikitext-2", tokenizer="char")
    stored = load_text("wikitext-2", tokenizer="char")
    assert raw.fingerprint == stored.fingerprint
    assert stored.tokenizer.decode(stored.train) == TEXT
    assert stored.tokenizer.decode(stored.val) == "the quick fox\n" * 9


def test_a_long_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mutransfer.data.documents._PIECE_CHARACTERS", 100)
    text = "a\r\nb\u2028c\n" * 50  # line ends stay as they are
    (tmp_path / "text.txt").write_text(text, newline="")
    prepare("shakespeare", source=tmp_path / "text.txt", tokenizer="char")
    data = load_text("shakespeare")
    assert data.tokenizer.decode(np.concatenate([data.train, data.val])) == text


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
@pytest.mark.parametrize("own_split", [False, True])
def test_limit_keeps_the_first_tokens(tmp_path: Path, tokenizer: str, own_split: bool) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train.txt").write_text(TEXT + "ÿ")
    if own_split:
        (folder / "val.txt").write_text(TEXT)
    done = prepare("fineweb-edu", source=folder, tokenizer=tokenizer, limit=200)
    data = load_text("fineweb-edu")
    assert len(data.train) + len(data.val) == 200 and len(data.val) == 20
    assert data.tokenizer.decode(data.train) == TEXT[:180]
    assert done.meta["limit"] == 200
    assert "ÿ" not in done.meta["tokenizer"].get("characters", "")


def test_the_same_request_is_answered_from_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    assert not prepare("shakespeare", source=path).cached
    assert prepare("shakespeare", source=path).cached
    assert prepare("shakespeare").cached
    assert not prepare("shakespeare", source=path, limit=100).cached
    assert len(load_text("shakespeare").train) == 90


def test_ids_beyond_16_bits_are_stored_in_32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = types.SimpleNamespace(eot_token=100257, encode_ordinary=lambda text: [100000 + ord(c) for c in text])
    module = types.ModuleType("tiktoken")
    module.get_encoding = lambda name: encoding
    monkeypatch.setitem(sys.modules, "tiktoken", module)
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "ab"}\n' * 20)
    done = prepare("openwebtext", source=path, tokenizer="cl100k_base")
    data = load_text("openwebtext")
    assert (done.meta["dtype"], data.train.dtype, data.vocab_size) == ("uint32", np.uint32, 100277)
    assert data.train[:6].tolist() == [100097, 100098, 100257] * 2  # end of text after each document


class Hub(types.ModuleType):
    """A stand-in for the package `datasets` that serves rows and records how it was asked."""

    def __init__(self) -> None:
        super().__init__("datasets")
        self.calls: list[tuple] = []

    def load_dataset(self, repo: str, config: str | None, split: str, streaming: bool) -> list[dict[str, str]]:
        self.calls.append((repo, config, split, streaming))
        return [{"text": f"{split} line {i}\n"} for i in range(100)]


def test_hub_data_streams_only_under_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    prepare("wikitext-103", tokenizer="byte")
    prepare("fineweb-edu", tokenizer="byte", limit=100)
    assert hub.calls == [
        ("Salesforce/wikitext", "wikitext-103-raw-v1", "validation", False),
        ("Salesforce/wikitext", "wikitext-103-raw-v1", "train", False),
        ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", True),
    ]
    data = load_text("wikitext-103")
    assert data.tokenizer.decode(data.val).startswith("validation line 0\nvalidation line 1\n")


def test_a_broken_stream_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()

    def broken(*_: object, **__: object):
        yield {"text": "a"}
        raise ConnectionError("lost\nin the middle")

    monkeypatch.setattr(hub, "load_dataset", broken)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with pytest.raises(InputError, match=r"ConnectionError: lost\): put its text") as caught:
        prepare("openwebtext", tokenizer="byte")
    assert "\n" not in str(caught.value)
    assert not root.exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["shakespeare", "covertype", "cifar100"])
def test_offline_says_which_file_to_put_where(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match="cannot download") as caught:
        prepare(name)
    line = str(caught.value)
    assert next(iter(KNOWN[name].files)) in line and str(root / name) in line and "\n" not in line
    assert not root.exists()


def test_a_missing_hub_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'mutransfer\[hf\]'"):
        prepare("fineweb-edu", tokenizer="byte")


def test_tiny_shakespeare_is_found_verified_and_split_like_nanogpt(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUTRANSFER_DATA", str(shared / "data"))
    data = load_text("shakespeare")  # read in place: the folder need not be writable
    assert (data.vocab_size, len(data.train), len(data.val)) == (65, 1003854, 111540)
    assert data.tokenizer.decode(data.train[:14]) == "First Citizen:"


def test_a_local_file_with_another_content_is_refused(root: Path) -> None:
    root.mkdir()
    (root / "tinyshakespeare.txt").write_text(TEXT)
    for call in (load, prepare):
        with pytest.raises(InputError, match="source=PATH to use it all the same"):
            call("shakespeare")
    prepare("shakespeare", source=root / "tinyshakespeare.txt")


def test_a_folder_of_the_user_is_not_replaced(root: Path) -> None:
    (root / "topics" / "char").mkdir(parents=True)
    (root / "topics" / "char" / "train.bin").write_text("mine")
    with pytest.raises(InputError, match="move it away"):
        prepare("topics")
    assert (root / "topics" / "char" / "train.bin").read_text() == "mine"


def test_a_failed_renewal_keeps_the_finished_form(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(TEXT)
    (tmp_path / "bad.txt").write_bytes(b"\xff" * 50)
    done = prepare("shakespeare", source=tmp_path / "good.txt")
    with pytest.raises(InputError, match="not UTF-8"):
        prepare("shakespeare", source=tmp_path / "bad.txt")
    assert load_text("shakespeare").train.size == done.meta["train_tokens"]
    assert [path.name for path in done.folder.parent.iterdir()] == ["char"]


@pytest.mark.parametrize("name", ["topics", "digits", "digits-images"])
def test_embedded_data_can_be_stored_too(name: str) -> None:
    done = prepare(name)
    assert load(done.folder).fingerprint == load(name).fingerprint


def test_listing_says_what_is_here(tmp_path: Path, root: Path) -> None:
    before = {row.name: row for row in listing()}
    assert not root.exists()
    assert list(before) == list(KNOWN)
    assert [name for name, row in before.items() if row.present] == ["topics", "digits", "digits-images"]
    (tmp_path / "text.txt").write_text(TEXT)
    prepare("wikitext-2", source=tmp_path / "text.txt", tokenizer="byte")
    row = next(row for row in listing() if row.name == "wikitext-2")
    assert row.present and row.prepared == ("byte",) and row.folder == root / "wikitext-2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="shakespear"), "did you mean 'shakespeare'"),
        (dict(name="zzz"), "write one of topics, "),
        (dict(name="topics", tokenizer="bytes"), "'bytes' is unknown: write one of char, byte"),
        (dict(name="digits", tokenizer="byte"), "is table, not text"),
        (dict(name="topics", limit=-5), "limit=-5"),
        (dict(name="topics", source="nowhere.txt"), "'nowhere.txt' does not exist"),
        (dict(name="digits", source="."), "comes with scikit-learn"),
        (dict(name="topics", folder="/dev/null/x"), "cannot write to"),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(arguments: dict, message: str, root: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prepare(**arguments)
    assert "\n" not in str(caught.value)
    assert not root.exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("text.txt", b"", "is empty"),
        ("text.txt", b"ab\xff" * 50, "not UTF-8 text .byte 0xff."),
        ("text.jsonl", b'{"text": "a"}\n{"words": "b"}\n', "line 2"),
        ("text.jsonl", b"not json", "line 1"),
        ("text.jsonl", b'{"text": 3}', "line 1"),
        ("text.csv", b"", "no training text"),
        ("text.txt", b"a", "is empty: 0 training tokens, 1 held out"),
    ],
)
def test_unusable_sources_are_one_line_and_write_nothing(
    tmp_path: Path, root: Path, file: str, content: bytes, message: str
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        prepare("wikitext-2", source=tmp_path / "source", tokenizer="char")
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_importing_the_package_loads_no_optional_one() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import mutransfer.data;"
        "print(*(set(sys.modules) - before), sep='\\n')"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mutransfer.data.text" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {
        "sklearn",
        "pandas",
        "tiktoken",
        "datasets",
        "pyarrow",
        "matplotlib",
    }
