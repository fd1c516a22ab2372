"""Growing checkpoints on disk, tensor by tensor: runs of ours, plain files, safetensors, Hugging Face folders."""

from mutransfer.growth.files.growing import Growing
from mutransfer.growth.files.open import open_checkpoint
from mutransfer.growth.files.write import Prepared, prepare, write

__all__ = ["Growing", "Prepared", "open_checkpoint", "prepare", "write"]
