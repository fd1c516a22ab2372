"""Files of text become one score each, for any model and any tokenizer; what cannot be read is one clear line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import mutransfer as mt
from mutransfer.data import ByteTokenizer, CharTokenizer
from mutransfer.errors import InputError
from mutransfer.evaluate import total

ALPHABET = "abcdefgh"


def uniform(x: Tensor) -> Tensor:
    return torch.zeros(*x.shape, 256)


def test_each_file_is_a_domain(tmp_path: Path) -> None:
    texts = {"a.txt": "plain text\n" * 30, "b.txt": "größer 😀\r\n" * 20}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    files = [tmp_path / name for name in texts]
    scores = mt.evaluate_text(uniform, ByteTokenizer().encode, files, context=32)
    for score, file, text in zip(scores, files, texts.values(), strict=True):
        assert score.domain == str(file) and score.bytes == len(text.encode()) == score.tokens + 1
        assert score.nats == pytest.approx(math.log(256), rel=1e-15)
        assert score.perplexity == pytest.approx(256)
        assert score.bits_per_byte == pytest.approx(8 * score.tokens / len(text.encode()))  # the first byte is given


def test_a_known_distribution_is_charged_its_own_code_length(tmp_path: Path) -> None:
    """Letters drawn with p = 1/2, 1/4, …: the model that knows p needs −log2 p bits for each, about its entropy."""
    p = np.array([2.0 ** -min(i + 1, 7) for i in range(8)])
    drawn = np.random.default_rng(0).choice(8, p=p, size=20_001)
    (tmp_path / "a.txt").write_text("".join(ALPHABET[i] for i in drawn))
    row = torch.tensor(np.log(p), dtype=torch.float32) + 5.0  # a shift of logits means nothing
    encode = CharTokenizer(ALPHABET).encode
    (score,) = mt.evaluate_text(lambda x: row.expand(*x.shape, 8), encode, tmp_path / "a.txt", context=50, stride=20)
    assert score.bits_per_byte == pytest.approx(-np.log2(p[drawn[1:]]).sum() / 20_001, rel=1e-6)
    entropy = float(-(p * np.log(p)).sum())
    assert score.stderr is not None and abs(score.nats - entropy) < 3 * score.stderr
    scatter = math.sqrt(float((p * np.log(p) ** 2).sum()) - entropy**2) / math.sqrt(20_000)
    assert score.stderr == pytest.approx(scatter, rel=0.3)


def test_bits_per_byte_do_not_depend_on_the_tokenizer_and_perplexity_does(tmp_path: Path) -> None:
    """The same fair coin over 'a' and 'b', in letters or in pairs of letters."""
    (tmp_path / "a.txt").write_text("".join("ab"[i] for i in np.random.default_rng(0).integers(2, size=4000)))

    def pairs(text: str) -> list[int]:
        return [2 * (text[i] == "b") + (text[i + 1] == "b") for i in range(0, len(text), 2)]

    letters = mt.evaluate_text(
        lambda x: torch.zeros(*x.shape, 2), CharTokenizer("ab").encode, tmp_path / "a.txt", context=8
    )
    two = mt.evaluate_text(lambda x: torch.zeros(*x.shape, 4), pairs, [tmp_path / "a.txt"], context=8)
    assert (letters[0].perplexity, two[0].perplexity) == pytest.approx((2.0, 4.0))
    assert letters[0].bits_per_byte == pytest.approx(1.0, rel=1e-3)
    assert two[0].bits_per_byte == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("as_what", [list, np.asarray, torch.tensor])
def test_ids_may_come_in_any_form(as_what, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (score,) = mt.evaluate_text(uniform, lambda text: as_what([ord(c) for c in text]), tmp_path / "a.txt", context=4)
    assert score.tokens == 8


def test_documents_of_jsonl_are_read_as_in_training(tmp_path: Path) -> None:
    rows = ["first document", "zweites, größer"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    seen = []
    mt.evaluate_text(
        uniform, lambda text: (seen.append(text), ByteTokenizer().encode(text))[1], tmp_path / "a.jsonl", context=4
    )
    assert seen == ["first document\nzweites, größer\n"]


def test_progress_counts_tokens_of_all_files(tmp_path: Path) -> None:
    for name, size in (("a.txt", 41), ("b.txt", 21)):
        (tmp_path / name).write_text("x" * size)
    said: list[tuple[int, int, str]] = []
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    scores = mt.evaluate_text(
        uniform, ByteTokenizer().encode, files, context=8, batch=2, on_progress=lambda *row: said.append(row)
    )
    assert said[-1] == (60, 60, str(files[1])) and said[0] == (16, 60, str(files[0]))
    assert [done for done, _, _ in said] == sorted(done for done, _, _ in said) and total(scores).tokens == 60


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "good.txt": b"good text", "empty.txt": b"", "one.txt": b"x", "latin.txt": b"gr\xf6\xdfer", "snow.txt": "ab\ncd☃".encode(),
        "bad.jsonl": b'{"txt": 1}\n',
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    return tmp_path


def failing(text: str) -> list[int]:
    raise RuntimeError("merge table\nis lost")


CHARS = CharTokenizer("abcd\n").encode
TABLE = {c: i for i, c in enumerate("abcd\n")}


@pytest.mark.parametrize(
    ("encode", "files", "said"),
    [
        (None, [], "no file"),
        (None, "missing.txt", "'missing.txt' does not exist"),
        (None, "missing.jsonl", "'missing.jsonl' does not exist"),
        (None, ".", "is a folder"),
        (None, "empty.txt", "'empty.txt' is empty"),
        (None, "one.txt", "'one.txt' has 1 token"),
        (None, "latin.txt", "'latin.txt' is not UTF-8 text (byte 0xf6 at 2)"),
        (None, "bad.jsonl", "line 1"),
        (None, ["good.txt", "./good.txt"], "given twice"),
        (CHARS, "snow.txt", "'snow.txt': character '☃' at position 5"),
        (
            lambda text: [TABLE[c] for c in text],
            "snow.txt",
            "'snow.txt': the tokenizer does not know '☃' (offset 5, line 2)",
        ),
        (failing, "good.txt", "'good.txt': the tokenizer cannot encode it (RuntimeError: merge table)"),
        (lambda text: [[1, 2]], "good.txt", "shape (1, 2)"),
        (lambda text: [[1], [1, 2]], "good.txt", "one id per token"),
        (lambda text: [0.5, 1.5], "good.txt", "one id per token"),
        (lambda text: [], "good.txt", "has 0 tokens"),
        (lambda text: [1, 2, 256], "good.txt", "'good.txt': token id 256"),
        (lambda text: [1, 2, -1], "good.txt", "'good.txt': token id -1"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_line(encode, files, said: str, bad: Path) -> None:
    with pytest.raises(InputError) as caught:
        mt.evaluate_text(uniform, encode or ByteTokenizer().encode, files, context=8)
    assert said in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_no_model_runs_before_all_files_are_read(bad: Path) -> None:
    ran: list[int] = []
    with pytest.raises(InputError, match="missing"):
        mt.evaluate_text(lambda x: ran.append(1), ByteTokenizer().encode, ["good.txt", "missing.txt"], context=8)
    assert not ran
