"""`mutransfer evaluate`: perplexity and bits per byte of a checkpoint on held-out text, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.evaluate import Checkpoint, DomainScore
    from mutransfer.evaluate.predicted import Beside, Predicted
    from mutransfer.evaluate.text import Domain

INSIDE, OUTSIDE = 0, 1


@dataclass(frozen=True)
class Evaluate:
    """Perplexity and bits per byte of a checkpoint on held-out text, per domain, beside the predicted loss.

    Exit code 0: inside the prediction's interval, or nothing to compare; 1: outside. The held-out split decides where it
    is evaluated, else every file.

    Examples:
      mutransfer evaluate runs/a
      mutransfer evaluate runs/a --text news.txt code.txt --stride 64 --predicted prediction.json
      mutransfer evaluate path/to/huggingface-model --text news.txt
    """

    summary: ClassVar[str] = "perplexity and bits per byte of a checkpoint, beside the predicted loss"

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """The folder of a run (mutransfer train) or its checkpoint.pt, or of a Hugging Face causal language model."""
    text: Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")] = ()
    """Held-out text, one domain per file; by default the held-out split of the data the run was trained on."""
    held_out: bool = False
    """With --text: that split too."""
    context: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Tokens per window; by default the model's own, of Hugging Face models at most 2,048."""
    stride: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """A window starts every so many tokens; by default the context: windows do not overlap."""
    batch: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Windows at once; by default as many as hold 4,096 tokens."""
    predicted: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """What mutransfer predict --json printed: the prediction for this model's size is shown beside."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the scores as JSON."""

    def run(self) -> int:
        """Print one line per domain (or JSON). Returns 1 where the measured loss is outside its prediction, else 0."""
        from mutransfer.commands.output import Progress, show_json
        from mutransfer.evaluate import open_checkpoint, total
        from mutransfer.evaluate.predicted import matching, read_predictions
        from mutransfer.evaluate.text import score_domains
        from mutransfer.evaluate.windows import check_window

        predictions = () if self.predicted is None else read_predictions(self.predicted)
        if self.context is not None:
            check_window(self.context, self.stride, self.batch)
        checkpoint = open_checkpoint(self.checkpoint, self.device)
        context = checkpoint.context if self.context is None else self.context
        if checkpoint.longest is not None and context > checkpoint.longest:
            raise InputError(f"--context {context} is longer than the model's {checkpoint.longest}: write that or less")
        stride, _ = check_window(context, self.stride, self.batch)
        prediction = matching(predictions, checkpoint.sizes) if predictions else None
        domains = self._domains(checkpoint)
        with Progress("evaluate", sum(len(domain.ids) - 1 for domain in domains)) as progress:
            scores = score_domains(
                checkpoint.model, domains, context=context, stride=stride, batch=self.batch, device=checkpoint.device,
                on_progress=progress.callback(),
            )  # fmt: skip
        beside = [None if prediction is None else prediction.beside(score) for score in scores]
        judged = beside[:1] if self._with_held_out else beside  # the split comes first
        said = [each.inside for each in judged if each is not None]
        inside = all(said) if said else None
        notes = [*checkpoint.notes, *self._notes(domains, prediction, checkpoint)]
        if self.json:
            show_json({
                "checkpoint": checkpoint.folder, "model": checkpoint.words, "sizes": dict(checkpoint.sizes),
                "context": context, "stride": stride,
                "domains": [_row(score, b) for score, b in zip(scores, beside, strict=True)], "all": total(scores).to_dict(),
                "predicted": None if prediction is None else _plain(prediction), "inside": inside, "notes": notes,
            })  # fmt: skip
        else:
            print(f"{checkpoint.folder}: {checkpoint.words}")
            print(f"windows of {context} tokens every {stride}: each token but a domain's first is scored once\n")
            _show(scores, beside)
            for note in notes:
                print(f"note: {note}")
            if prediction is not None and inside is not None:
                print(f"{'inside' if inside else 'OUTSIDE'}: {prediction.words}")
        return OUTSIDE if inside is False else INSIDE

    @property
    def _with_held_out(self) -> bool:
        return self.held_out or not self.text

    def _domains(self, checkpoint: Checkpoint) -> list[Domain]:
        from mutransfer.evaluate.text import file_list, read_domain

        files = file_list(self.text) if self.text else []
        first = [checkpoint.held_out()] if self._with_held_out else []
        return first + [read_domain(checkpoint.encode, path, checkpoint.decode) for path in files]

    def _notes(self, domains: Sequence[Domain], prediction: Predicted | None, checkpoint: Checkpoint) -> list[str]:
        from mutransfer.evaluate.predicted import unchecked

        changed = [domain.name for domain in domains if domain.changed]
        notes = [
            f"the tokenizer does not keep {name} as it is: its bits per byte are those of a changed text"
            for name in changed
        ]
        if prediction is None:
            return notes
        notes.append(
            f"the loss predicted is that of {prediction.column or 'the fitted column'}: it holds for text and tokens like"
            " those that it was fitted on"
        )
        unknown = unchecked(prediction, checkpoint.sizes)
        if unknown:
            notes.append(
                f"the prediction is for {', '.join(f'{n}={prediction.at[n]:g}' for n in unknown)} too, which cannot be compared"
            )
        return notes


def _row(score: DomainScore, beside: Beside | None) -> dict[str, Any]:
    if beside is None:
        return {**score.to_dict(), "predicted": None}
    said = {
        "loss": beside.loss,
        "low": beside.low,
        "high": beside.high,
        "perplexity": beside.perplexity,
        "inside": beside.inside,
    }
    return {**score.to_dict(), "predicted": said}


def _plain(prediction: Predicted) -> dict[str, Any]:
    """As it was read: in its own unit."""
    return {
        "at": dict(prediction.at), "loss": prediction.loss, "low": prediction.low, "high": prediction.high,
        "level": prediction.level, "unit": prediction.unit, "column": prediction.column,
    }  # fmt: skip


def _show(scores: Sequence[DomainScore], beside: Sequence[Beside | None]) -> None:
    """One line per domain, and one for all of them where there are several."""
    from rich.console import Console
    from rich.table import Table

    from mutransfer.evaluate import total

    compared = any(beside)
    table = Table("domain", box=None, pad_edge=False)
    for name in ("bytes", "tokens", "nats/token", "perplexity", "bits/byte"):
        table.add_column(name, justify="right", no_wrap=True)
    if compared:
        for name in ("predicted", "perplexity", "inside"):
            table.add_column(name, justify="right", no_wrap=True)
    rows = [*zip(scores, beside, strict=True), *([(total(scores), None)] if len(scores) > 1 else [])]
    for score, said in rows:
        ours = [
            "–" if score.bytes is None else f"{score.bytes:,}", f"{score.tokens:,}", f"{score.nats:.4f}{_error(score.stderr)}",
            f"{score.perplexity:.4g}", "–" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}",
        ]  # fmt: skip
        theirs = ["", "", ""]
        if said is not None:
            inside = "yes" if said.inside else "NO"
            theirs = [f"{said.loss:.4f} [{said.low:.4f}, {said.high:.4f}]", f"{said.perplexity:.4g}", inside]
        table.add_row(score.domain, *ours, *(theirs if compared else []))
    # as wide as it needs to be: a file is read by its lines
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 160 + max(len(score.domain) for score in scores))
    console.print(table)


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {stderr:.4f}"
