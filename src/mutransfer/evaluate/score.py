"""The score of one domain: nats per token with its standard error, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutransfer.errors import InputError

FEWEST, MOST = 8, 32  # blocks of the standard error


@dataclass(frozen=True)
class DomainScore:
    """What a model makes of one text: L = −Σ ln p(token | tokens before it), over all tokens but the first."""

    domain: str
    tokens: int
    """Those scored."""
    bytes: int | None
    """Of the whole text in UTF-8; None where the text of the tokens is not known."""
    nats: float
    """Per token, L / tokens; infinite where a token was held to be impossible."""
    stderr: float | None
    """Of `nats`: see `block_error`; None where the text is too short to tell."""

    @property
    def perplexity(self) -> float:
        """exp(nats); comparable between models with the same tokenizer only."""
        return math.exp(self.nats) if self.nats < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """L / ln 2 / bytes: comparable whatever the tokenizer. None where the bytes are not known."""
        return self.nats * self.tokens / math.log(2) / self.bytes if self.bytes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "domain": self.domain, "tokens": self.tokens, "bytes": self.bytes, "nats": self.nats, "stderr": self.stderr,
            "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte,
        }  # fmt: skip


def score_of(domain: str, nats: np.ndarray, size: int | None, context: int) -> DomainScore:
    """The score of a text of `size` bytes whose tokens cost `nats` (float64, in their order)."""
    mean = float(nats.mean())
    return DomainScore(domain, len(nats), size, mean, block_error(nats, context) if math.isfinite(mean) else None)


def block_error(nats: np.ndarray, context: int) -> float | None:
    """Standard error of the mean of `nats`, whose neighbours are correlated, by the method of batch means.

    The text is cut into K consecutive blocks of (nearly) equal numbers of tokens, 8 to 32 of them, each at least a context
    long where the text has eight contexts. With n_i tokens of sum S_i in block i and m = ΣS_i / Σn_i:

        se² = K/(K−1) · Σ(S_i − m·n_i)² / n²

    It holds where the correlation between tokens ends well within a block, and says how far another text *of the same
    kind* would differ; a file of a few long documents differs by more. None below 16 tokens.
    Source: L. W. Schmeiser, Batch size effects in the analysis of simulation output, Operations Research 30 (1982) 556.
    """
    count = len(nats)
    if count < 2 * FEWEST:
        return None
    blocks = min(MOST, max(FEWEST, count // context))
    edges = np.arange(blocks + 1) * count // blocks
    rest = np.add.reduceat(nats, edges[:-1]) - nats.mean() * np.diff(edges)
    return math.sqrt(blocks / (blocks - 1) * float(rest @ rest)) / count


def total(scores: Sequence[DomainScore], domain: str = "all") -> DomainScore:
    """All domains as one text: nats per token averaged over tokens, bits per byte over bytes; domains are independent.

    se² = Σ (n_i·se_i)² / n². Bytes and the standard error are None where those of a domain are.
    Raises InputError for no domain.
    """
    if not scores:
        raise InputError("there is no score to add up: give at least one")
    tokens = sum(score.tokens for score in scores)
    known = [score.bytes for score in scores if score.bytes is not None]
    errors = [score.tokens * score.stderr for score in scores if score.stderr is not None]
    every = len(scores)
    return DomainScore(
        domain,
        tokens,
        sum(known) if len(known) == every else None,
        math.fsum(score.nats * score.tokens for score in scores) / tokens,
        math.hypot(*errors) / tokens if len(errors) == every else None,
    )
