"""Growing checkpoints on disk, tensor by tensor: runs of ours, plain files, safetensors, Hugging Face folders."""

from mutransfer.grow.files.growing import Growing
from mutransfer.grow.files.open import open_checkpoint
from mutransfer.grow.files.write import Prepared, prepare, write

__all__ = ["Growing", "Prepared", "open_checkpoint", "prepare", "write"]
