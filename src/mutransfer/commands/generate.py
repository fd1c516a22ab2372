"""`mutransfer generate`: text from a trained GPT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Generate:
    """Text from a trained GPT, in the tokens that it was trained on.

    Example: mutransfer generate runs/a --prompt 'The ' --tokens 200 --temperature 0.8
    """

    summary: ClassVar[str] = "text from a trained GPT"

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """The folder of a run (mutransfer train), or its checkpoint.pt."""
    prompt: Annotated[str, arg(metavar="TEXT")] = "\n"
    """The text to continue."""
    tokens: Annotated[int, arg(metavar="INT")] = 200
    """How many tokens to add."""
    temperature: Annotated[float, arg(metavar="FLOAT")] = 1.0
    """0 takes the likeliest token, 1 samples from the model."""
    top_k: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Sample among the likeliest k only."""
    seed: Annotated[int, arg(metavar="INT")] = 0
    """The same seed gives the same text."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print prompt and text as JSON."""

    def run(self) -> int:
        """Print the prompt and its continuation. Returns 0."""
        import torch

        from mutransfer.commands.output import show_json
        from mutransfer.data import TextData, load
        from mutransfer.models import GPT, generate
        from mutransfer.train import load_checkpoint, load_run

        folder = self.checkpoint.parent if self.checkpoint.name == "checkpoint.pt" else self.checkpoint
        saved = load_checkpoint(folder / "checkpoint.pt")
        config, model, _ = load_run(folder, self.device)
        if not isinstance(model, GPT):
            raise InputError(f"{str(folder)!r} holds a {config.model_kind}: only a gpt generates text")
        data = load(config.data, tokenizer=config.tokenizer)
        if not isinstance(data, TextData) or data.fingerprint != saved["data"]:
            raise InputError(
                f"data {config.data!r} is not what {str(folder)!r} was trained on: its tokens would be others"
            )
        if not self.prompt:
            raise InputError("--prompt '' is empty: write at least one character")
        ids = torch.from_numpy(data.tokenizer.encode(self.prompt).astype("int64"))[None]
        device = next(model.parameters()).device
        more = generate(model, ids.to(device), self.tokens, self.temperature, self.top_k, self.seed)[0, ids.shape[1] :]
        text = data.tokenizer.decode(more.tolist())
        if self.json:
            show_json({"prompt": self.prompt, "text": text})
        else:
            print(self.prompt + text)
        return 0
