"""Reference models: plain PyTorch that knows nothing of plans."""

from mutransfer.models.gpt import GPT, GPTConfig, flops_per_token, generate, gpt_factory, gpt_loss

__all__ = ["GPT", "GPTConfig", "flops_per_token", "generate", "gpt_factory", "gpt_loss"]
