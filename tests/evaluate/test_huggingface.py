"""Hugging Face folders: with a stand-in for transformers here, and with transformers itself where it is installed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mutransfer.cli import main
from mutransfer.errors import InputError
from mutransfer.evaluate import evaluate_text, open_checkpoint

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed: pip install 'mutransfer[hf]'",
)
LETTERS = "abcdefgh \n"


class StandIn(nn.Module):
    """A bigram model that speaks as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 12)
        self.config = SimpleNamespace(max_position_embeddings=32, hidden_size=12, num_hidden_layers=1, use_cache=True)

    def forward(self, input_ids: Tensor) -> Any:
        assert input_ids.shape[1] <= 32 and not self.config.use_cache
        return SimpleNamespace(logits=self.table(input_ids), past_key_values=None)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> None:
        return None


class Letters:
    """A fast tokenizer with a token in front (11), and one for what it does not know (10), or nothing."""

    is_fast, bos_token_id, eos_token_id = True, 11, None

    def __init__(self, unk: int | None = 10) -> None:
        self.unk_token_id = unk

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        rows = [(LETTERS.find(c), (i, i + 1)) for i, c in enumerate(text)]
        rows = [
            (self.unk_token_id if i < 0 else i, span) for i, span in rows if i >= 0 or self.unk_token_id is not None
        ]
        rows = [(11, (0, 0))] * add_special_tokens + rows
        return {"input_ids": [i for i, _ in rows], "offset_mapping": [span for _, span in rows]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(LETTERS[i] for i in ids if i < 10)


class Slow(Letters):
    is_fast = False

    def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> dict[str, Any]:
        assert "return_offsets_mapping" not in options
        return {"input_ids": super().__call__(text, add_special_tokens)["input_ids"]}


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a stand-in for the package in place; returns the folder of a model."""

    def make(tokenizer: Any, missing: tuple[str, ...] = ()) -> Path:
        def pretrained(value: Any) -> Any:
            def load(folder: Path, *, local_files_only: bool, output_loading_info: bool = False) -> Any:
                assert local_files_only and folder == tmp_path
                if isinstance(value, Exception):
                    raise value
                return (value, {"missing_keys": set(missing)}) if output_loading_info else value

            return SimpleNamespace(from_pretrained=load)

        silent = SimpleNamespace(set_verbosity_error=lambda: None, disable_progress_bar=lambda: None)
        package = SimpleNamespace(
            AutoModelForCausalLM=pretrained(StandIn()), AutoTokenizer=pretrained(tokenizer), utils=SimpleNamespace(logging=silent)
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "transformers", package)  # pyright: ignore[reportArgumentType]
        for name in ("config.json", "tokenizer.json"):
            (tmp_path / name).write_text("{}")
        return tmp_path

    return make


def test_all_of_a_text_is_scored_after_the_token_in_front(pretend: Any, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(pretend(Letters()))
    text = "a bad cab\nfed a fad " * 9
    (tmp_path / "a.txt").write_text(text)
    (score,) = evaluate_text(checkpoint.model, checkpoint.encode, tmp_path / "a.txt", context=checkpoint.context)
    ids = [11, *(LETTERS.index(c) for c in text)]
    rows = torch.log_softmax(StandIn().table.weight.detach().double(), 1)
    nats = -sum(float(rows[a, b]) for a, b in itertools.pairwise(ids))
    assert score.tokens == score.bytes == len(text) and score.nats == pytest.approx(nats / len(text), rel=1e-12)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / len(text), rel=1e-12)
    assert checkpoint.sizes == {"params": 144, "width": 12, "non_embedding": 0, "depth": 1}
    assert (checkpoint.context, checkpoint.longest) == (32, 32)
    assert isinstance(checkpoint.model, nn.Module) and not checkpoint.model.training


@pytest.mark.parametrize(("tokenizer", "said"), [
    (Letters(), "character 'z' (offset 5, line 2)"), (Letters(unk=None), "character 'z' (offset 5, line 2)"),
    (Slow(), "does not know what comes after 'ab\\ncd'"),
])  # fmt: skip
def test_an_unknown_character_is_named(tokenizer: Any, said: str, pretend: Any) -> None:
    checkpoint = open_checkpoint(pretend(tokenizer))
    with pytest.raises(InputError) as caught:
        checkpoint.encode("ab\ncdz!")
    assert said in str(caught.value)


def test_a_slow_tokenizer_will_do(pretend: Any) -> None:
    assert open_checkpoint(pretend(Slow())).encode("ab").tolist() == [11, 0, 1]


def test_a_changed_text_is_noted(pretend: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pretend(Letters(unk=None))
    (tmp_path / "tab.txt").write_text("ab\tcd" * 9)  # no token for a tab, which is white space
    assert main(["evaluate", str(folder), "--text", str(tmp_path / "tab.txt"), "--device", "cpu", "--json"]) == 0
    assert "does not keep" in json.loads(capsys.readouterr().out)["notes"][0]


def test_a_model_that_is_not_whole_is_refused(pretend: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights for 'lm_head\.weight'"):
        open_checkpoint(pretend(Letters(), missing=("lm_head.weight",)))
    with pytest.raises(InputError, match=r"its tokenizer cannot be loaded \(OSError: no files\)"):
        open_checkpoint(pretend(OSError("no files\nat all")))
    (pretend(Letters()) / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="holds no tokenizer"):
        open_checkpoint(tmp_path)


def test_it_has_no_held_out_text_of_its_own(pretend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(pretend(Letters())), "--device", "cpu"]) == 2
    assert "give held-out files with --text" in capsys.readouterr().err


def test_without_the_package_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # pyright: ignore[reportArgumentType]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"pip install 'mutransfer\[hf\]'"):
        open_checkpoint(tmp_path)


@needs_transformers
@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_saved_gpt2_is_charged_what_a_pass_per_token_charges(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")

    letters = tokenizers.Tokenizer(tokenizers.models.BPE())
    letters.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    text = "größer 😀 and smaller,\n  again\n" * 5
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<end>"])
    letters.train_from_iterator([text], trainer)
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<end>")
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, **named).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=280,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    checkpoint = open_checkpoint(tmp_path)
    (score,) = evaluate_text(checkpoint.model, checkpoint.encode, tmp_path / "a.txt", context=16, stride=5)
    ids, total = np.array(letters.encode(text).ids), 0.0
    model = model.double().eval()
    for target in range(1, len(ids)):
        start = max(0, math.ceil((target - 16) / 5) * 5)
        with torch.no_grad():
            logits = model(torch.from_numpy(ids[start:target])[None]).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[ids[target]])
    assert score.tokens == len(ids) - 1 and score.nats == pytest.approx(total / score.tokens, rel=1e-6)
    assert checkpoint.longest == 16 and checkpoint.sizes["width"] == 16 and checkpoint.decode is not None
    assert checkpoint.decode(ids) == text
