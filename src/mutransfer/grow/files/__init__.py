"""Growing checkpoints on disk, tensor by tensor: runs of ours, plain files, safetensors, Hugging Face folders."""

from mutransfer.grow.files.open import open_checkpoint
from mutransfer.grow.files.write import Growing, write

__all__ = ["Growing", "open_checkpoint", "write"]
