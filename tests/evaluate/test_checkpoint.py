"""A run's checkpoint is evaluated with its own tokenizer on its own held-out text: its validation loss comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mutransfer as mt
from mutransfer.data import TextData, load
from mutransfer.errors import InputError
from mutransfer.evaluate import evaluate_text, open_checkpoint, token_nats
from mutransfer.evaluate.checkpoint import encode_known
from mutransfer.train import RunResult, load_run
from tests.evaluate.runs import trained, words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("evaluate")
    return folder / "run", trained(folder)


def test_the_validation_loss_of_the_run_comes_out(run: tuple[Path, RunResult]) -> None:
    """On the tokens that the run validated on: disjoint windows of its context, whole batches of eight of them."""
    folder, result = run
    config, model, _ = load_run(folder)
    data = load(config.data)
    assert isinstance(data, TextData) and result.val_loss is not None
    count, context = len(data.val), 16
    windows = (count - 1) // context
    whole = windows // 8 * 8
    starts = np.arange(whole) * windows // whole * context  # spread over the split: a few are left out
    nats = token_nats(model, data.val, context=context)[: windows * context]
    same = nats.reshape(windows, context)[starts // context]
    assert whole >= 40 and same.mean() == pytest.approx(result.val_loss, rel=2e-6)
    checkpoint = open_checkpoint(folder)
    held_out = checkpoint.held_out()
    assert np.array_equal(held_out.ids, data.val) and held_out.name == "held-out text.txt"
    assert held_out.bytes == len(data.tokenizer.decode(data.val).encode())
    assert held_out.bytes is not None and held_out.bytes > len(data.val)  # ö and ß have two


def test_a_checkpoint_says_what_it_is(run: tuple[Path, RunResult]) -> None:
    folder, result = run
    checkpoint = open_checkpoint(folder / "checkpoint.pt")
    assert (checkpoint.folder, checkpoint.context, checkpoint.longest) == (folder, 16, 16)
    sizes = checkpoint.sizes
    assert sizes["params"] == result.params and (sizes["width"], sizes["depth"]) == (16, 1)
    assert sizes["tokens"] == 24 * 8 * 16 and sizes["steps"] == 24 and not checkpoint.notes
    assert sizes["non_embedding"] < sizes["params"] and "24 updates" in checkpoint.words


def test_a_file_of_the_training_text_scores_like_the_held_out_part(run: tuple[Path, RunResult], tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text(words(1500, seed=7), encoding="utf-8")
    (tmp_path / "other.txt").write_text("lest we forget of mares " * 40)
    checkpoint = open_checkpoint(run[0])
    files = [tmp_path / "same.txt", tmp_path / "other.txt"]
    same, other = evaluate_text(checkpoint.model, checkpoint.encode, files, context=checkpoint.context)
    assert run[1].val_loss is not None and same.stderr is not None
    assert abs(same.nats - run[1].val_loss) < 5 * same.stderr < 0.2 < other.nats - same.nats


def test_an_unknown_character_is_named_with_its_place() -> None:
    from mutransfer.data import CharTokenizer

    with pytest.raises(InputError) as caught:
        encode_known(CharTokenizer("ab\n"), "ab\nab\naxb☃")
    assert "character 'x' (offset 7, line 3) is not among the 3" in str(caught.value)


def test_other_data_is_not_the_tokenizers(tmp_path: Path) -> None:
    trained(tmp_path)
    (tmp_path / "text.txt").write_text(words(1500, seed=1), encoding="utf-8")
    with pytest.raises(InputError, match=r"is not what .* was trained on"):
        open_checkpoint(tmp_path / "run")
    (tmp_path / "text.txt").unlink()
    with pytest.raises(InputError, match=r"needs the data it was trained on: .*text\.txt"):
        open_checkpoint(tmp_path / "run")


def test_a_tokenizer_that_is_the_same_everywhere_needs_no_data(tmp_path: Path) -> None:
    trained(tmp_path, tokenizer="byte", steps=6)
    there = open_checkpoint(tmp_path / "run")
    assert there.held_out().bytes == len(there.held_out().ids)
    (tmp_path / "text.txt").unlink()
    gone = open_checkpoint(tmp_path / "run")
    assert "text.txt" in gone.notes[0] and "'byte'" in gone.notes[0]
    (tmp_path / "new.txt").write_text("größer ☃ " * 10)
    before, after = (mt.evaluate_text(c.model, c.encode, tmp_path / "new.txt", context=16) for c in (there, gone))
    assert before == after
    with pytest.raises(InputError, match="needs the data"):
        gone.held_out()


def test_ids_without_a_text_have_a_perplexity_and_no_bytes(tmp_path: Path) -> None:
    """A bare file of token ids, as nanoGPT writes."""
    from dataclasses import replace

    from mutransfer.train import train

    ids = np.random.default_rng(0).integers(40, size=4000).astype(np.uint16)
    ids.tofile(tmp_path / "ids.bin")
    (tmp_path / "first").mkdir()
    trained(tmp_path / "first", steps=6)
    config, _, _ = load_run(tmp_path / "first" / "run")
    config = replace(config, data=str(tmp_path / "ids.bin"), model=replace(config.model, vocab_size=40))
    train(config, folder=tmp_path / "run")
    checkpoint = open_checkpoint(tmp_path / "run")
    domain = checkpoint.held_out()
    assert domain.bytes is None and len(domain.ids) == 400
    with pytest.raises(InputError, match="token ids alone"):
        checkpoint.encode("text")


def test_a_run_that_is_not_over_says_so(tmp_path: Path) -> None:
    from mutransfer.train import load_checkpoint, train

    trained(tmp_path)
    config = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["config"]
    train(config, folder=tmp_path / "paused", until=5)
    checkpoint = open_checkpoint(tmp_path / "paused")
    assert checkpoint.notes == ("the run has made 5 of its 24 updates",) and checkpoint.sizes["steps"] == 5
