"""Columns are found under the names that people, loggers and exports give them."""

from __future__ import annotations

from mutransfer.rows.columns import plain


def test_prefixes_of_loggers_are_not_part_of_a_name() -> None:
    assert [plain(n) for n in ("config.model.n_embd", "summary/train/loss", "Learning Rate", "_step")] == ["n_embd", "train_loss", "learning_rate", "step"]  # fmt: skip
