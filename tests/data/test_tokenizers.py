"""decode(encode(text)) is text; what cannot be encoded is named."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutransfer.data import (
    ByteTokenizer,
    CharTokenizer,
    TiktokenTokenizer,
    TokenIds,
    Tokenizer,
    make_tokenizer,
    tokenizer_from_dict,
)
from mutransfer.data.tokenizers import token_dtype
from mutransfer.errors import InputError


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_bytes_carry_any_text(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode()) and (not len(ids) or ids.max() < 256)
    assert tokenizer.decode(ids) == text


@given(st.text(min_size=1))
def test_characters_carry_their_own_text(text: str) -> None:
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size == len(set(text)) and len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict()))).decode(ids) == text


def test_characters_are_numbered_in_sorted_order() -> None:
    assert CharTokenizer("cabbage").encode("abceg").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["abx", "ab\U0001f600", "ab "])
def test_an_unknown_character_is_named_with_its_position(text: str) -> None:
    with pytest.raises(InputError, match="position 2") as caught:
        CharTokenizer("abc").encode(text)
    assert repr(text[2]) in str(caught.value)


def test_a_cut_character_decodes_to_the_replacement_sign() -> None:
    assert ByteTokenizer().decode("é".encode()[:1]) == "�"


@pytest.mark.parametrize("ids", [[0, 1], np.array([0, 1], dtype=np.uint16), torch.tensor([[0, 1]]), range(2)])
def test_ids_of_any_container_decode(ids: object) -> None:
    assert CharTokenizer("ab").decode(ids) == "ab"


@pytest.mark.parametrize("ids", [[2], [-1]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match=f"token id {ids[0]}"):
        CharTokenizer("ab").decode(ids)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("ab"), TiktokenTokenizer(), TokenIds(7)])
def test_every_tokenizer_keeps_the_protocol_and_survives_json(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert (again.name, again.vocab_size) == (tokenizer.name, tokenizer.vocab_size)


def test_ids_take_two_bytes_where_they_fit() -> None:
    assert [token_dtype(n) for n in (2, 65536, 65537)] == [np.uint16, np.uint16, np.uint32]


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for tiktoken whose merges are whole characters, ids shifted beyond 16 bits for cl100k_base."""

    class Encoding:
        eot_token = 50256

        def encode_ordinary(self, text: str) -> list[int]:
            return [ord(c) for c in text]

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    module = types.ModuleType("tiktoken")
    module.get_encoding = lambda name: Encoding()
    monkeypatch.setitem(sys.modules, "tiktoken", module)


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(("name", "dtype"), [("gpt2", np.uint16), ("cl100k_base", np.uint32)])
def test_tiktoken_encodings_carry_text(name: str, dtype: type) -> None:
    tokenizer = make_tokenizer(name)
    ids = tokenizer.encode("Hi <|endoftext|>")
    assert ids.dtype == dtype and tokenizer.decode(ids) == "Hi <|endoftext|>"
    assert isinstance(tokenizer, TiktokenTokenizer) and tokenizer.end_of_text == 50256


def test_a_missing_tiktoken_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokenizer = TiktokenTokenizer("gpt2")
    assert tokenizer.vocab_size == 50257  # known without the package
    with pytest.raises(InputError, match=r"pip install 'mutransfer\[hf\]'"):
        tokenizer.encode("a")


def test_an_unreachable_merge_table_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ConnectionError("a long\nstory")

    module = types.ModuleType("tiktoken")
    module.get_encoding = fail
    monkeypatch.setitem(sys.modules, "tiktoken", module)
    with pytest.raises(InputError, match="TIKTOKEN_CACHE_DIR") as caught:
        make_tokenizer("gpt2").encode("a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [lambda t: t.encode("a"), lambda t: t.decode([1])])
def test_bare_ids_have_no_text(call: object) -> None:
    with pytest.raises(InputError, match="tokenizer is not known"):
        call(TokenIds(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_tokenizer("gpt3"), "'gpt3' is unknown: write one of char, byte, gpt2"),
        (lambda: CharTokenizer(""), "the text is empty"),
        (lambda: TokenIds(0), "vocab_size=0"),
    ],
)
def test_wrong_tokenizers_are_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
