"""How well a language model predicts held-out text: nats per token, perplexity and bits per byte, per domain.

evaluate_text(model, encode, files, context=…)   one score per file, for any model that maps ids to logits
open_checkpoint(path)                            a run's folder or a Hugging Face folder, ready to be evaluated
total(scores)                                    all domains as one
"""

from mutransfer.evaluate.checkpoint import Checkpoint, open_checkpoint
from mutransfer.evaluate.score import DomainScore, score_of, total
from mutransfer.evaluate.text import evaluate_text
from mutransfer.evaluate.windows import token_nats

__all__ = ["Checkpoint", "DomainScore", "evaluate_text", "open_checkpoint", "score_of", "token_nats", "total"]
