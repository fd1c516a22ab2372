"""Perplexity and bits per byte as they are defined; a standard error that means what it says, correlated tokens too."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from mutransfer.errors import InputError
from mutransfer.evaluate import score_of, total
from mutransfer.evaluate.score import block_error


def test_perplexity_and_bits_per_byte_follow_from_the_nats() -> None:
    score = score_of("a", np.full(100, 2.0), 250, 16)
    assert score.perplexity == pytest.approx(math.exp(2))
    assert score.bits_per_byte == pytest.approx(200 / math.log(2) / 250)
    assert score.stderr == 0
    assert score_of("a", np.full(100, 2.0), None, 16).bits_per_byte is None
    assert score_of("a", np.full(100, 800.0), None, 16).perplexity == math.inf


def test_an_impossible_token_makes_the_score_infinite_and_its_error_unknown() -> None:
    score = score_of("a", np.array([1.0, math.inf] * 20), 40, 16)
    assert score.nats == score.perplexity == score.bits_per_byte == math.inf and score.stderr is None


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_standard_error_is_the_scatter_of_the_mean(correlation: float) -> None:
    """Over 400 texts of 5,000 tokens, independent or with a correlation of 0.9 between neighbours (10 tokens long)."""
    noise = np.random.default_rng(0).exponential(size=(400, 6000))
    nats = np.asarray(lfilter([1.0], [1.0, -correlation], noise, axis=1))[:, 1000:]
    claimed = np.sqrt(np.mean([block_error(row, 64) ** 2 for row in nats]))  # pyright: ignore[reportOptionalOperand]
    assert claimed == pytest.approx(nats.mean(1).std(), rel=0.12)
    naive = np.mean(nats.std(1)) / math.sqrt(nats.shape[1])
    assert (naive < 0.4 * claimed) == (correlation > 0)  # as if tokens were independent


def test_short_texts_have_an_error_from_shorter_blocks_or_none() -> None:
    nats = np.random.default_rng(0).exponential(size=(2000, 20))
    claimed = np.sqrt(np.mean([block_error(row, 64) ** 2 for row in nats]))  # pyright: ignore[reportOptionalOperand]
    assert claimed == pytest.approx(nats.mean(1).std(), rel=0.05)
    assert block_error(nats[0, :15], 64) is None


def test_the_total_counts_tokens_and_bytes_not_files() -> None:
    rows = np.random.default_rng(0).exponential(size=4000)
    long, short = score_of("long", rows[:3900], 3900, 16), score_of("short", rows[3900:], 300, 16)
    both = total([long, short])
    assert both.nats == pytest.approx(rows.mean(), rel=1e-14) and both.domain == "all"
    assert (both.tokens, both.bytes) == (4000, 4200)
    assert both.bits_per_byte == pytest.approx(rows.sum() / math.log(2) / 4200)
    assert long.stderr and short.stderr
    assert both.stderr == pytest.approx(math.hypot(3900 * long.stderr, 100 * short.stderr) / 4000)
    assert total([long]).to_dict() == {**long.to_dict(), "domain": "all"}
    unknown = total([long, score_of("ids", rows[:10], None, 16)])
    assert unknown.bytes is None and unknown.bits_per_byte is None and unknown.stderr is None
    with pytest.raises(InputError):
        total([])
