"""`mt.grow` on Hugging Face architectures nobody here wrote: trained three steps, grown ×2, compared over three more.

Prints for each what the grow plan claims and what the verification found, training steps included. Needs transformers.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.growth.guess import guessed_batch

warnings.simplefilter("ignore")
STACKED = dict(axes={"*.gate_up_proj": "stack out in", "*.down_proj": "stack out in"})
SMALL: dict[str, Any] = dict(vocab_size=50, num_hidden_layers=2)
SHORT: dict[str, Any] = dict(**SMALL, max_position_embeddings=32)


def heads(k: int, kv: int | None = 2) -> dict[str, int]:
    """Width and heads k-fold, the head size stays."""
    sizes = dict(hidden_size=32 * k, num_attention_heads=4 * k, intermediate_size=48 * k)
    return sizes if kv is None else dict(**sizes, num_key_value_heads=kv * k)


# name → model, config class, common settings, settings at k = 1 and k = 2, options of grow
Case = tuple[str, str, dict[str, Any], Any, dict[str, Any]]
CASES: dict[str, Case] = {
    "GPT-2, heads": ("GPT2LMHeadModel", "GPT2Config", dict(vocab_size=50, n_positions=16, n_layer=2), lambda k: dict(n_embd=32 * k, n_head=2 * k), {}),
    "GPT-2, head size": ("GPT2LMHeadModel", "GPT2Config", dict(vocab_size=50, n_positions=16, n_layer=2), lambda k: dict(n_embd=32 * k, n_head=2), {}),
    "Llama, grouped queries": ("LlamaForCausalLM", "LlamaConfig", SHORT, heads, {}),
    "Llama, key heads stay": ("LlamaForCausalLM", "LlamaConfig", SHORT, lambda k: heads(k) | dict(num_key_value_heads=2), {}),
    "Llama, head size": ("LlamaForCausalLM", "LlamaConfig", SHORT, lambda k: heads(k) | dict(num_attention_heads=4, num_key_value_heads=2), {}),
    "Llama, from one head": ("LlamaForCausalLM", "LlamaConfig", SHORT, lambda k: dict(hidden_size=16 * k, num_attention_heads=k, num_key_value_heads=k, intermediate_size=48 * k), {}),
    "Qwen2, tied": ("Qwen2ForCausalLM", "Qwen2Config", SHORT | dict(tie_word_embeddings=True), heads, {}),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SHORT | dict(head_dim=8), heads, {}),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", SHORT | dict(head_dim=8), heads, {}),
    "Phi-3, fused": ("Phi3ForCausalLM", "Phi3Config", SHORT | dict(pad_token_id=0, original_max_position_embeddings=32), heads, {}),
    "GPT-NeoX, fused by head": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SHORT, lambda k: heads(k, None), {}),
    "OPT, tied": ("OPTForCausalLM", "OPTConfig", SHORT, lambda k: dict(hidden_size=32 * k, num_attention_heads=4 * k, ffn_dim=48 * k, word_embed_proj_dim=32 * k), {}),
    "Falcon, one key head": ("FalconForCausalLM", "FalconConfig", SMALL, lambda k: dict(hidden_size=32 * k, num_attention_heads=4 * k), {}),
    "Bloom, ALiBi": ("BloomForCausalLM", "BloomConfig", dict(vocab_size=50, n_layer=2), lambda k: dict(hidden_size=32 * k, n_head=4 * k), {}),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", SHORT | dict(num_local_experts=4), heads, STACKED),
    "OLMoE": ("OlmoeForCausalLM", "OlmoeConfig", SMALL | dict(num_experts=4, num_experts_per_tok=2), heads, STACKED),
    "Mamba-2": ("Mamba2ForCausalLM", "Mamba2Config", dict(vocab_size=50, num_hidden_layers=1, head_dim=8, state_size=8, n_groups=2, chunk_size=4), lambda k: dict(hidden_size=32 * k, num_heads=8 * k), {}),
    "BERT": ("BertForMaskedLM", "BertConfig", SHORT, lambda k: heads(k, None), {}),
    "ALBERT": ("AlbertForMaskedLM", "AlbertConfig", SHORT | dict(embedding_size=8), lambda k: heads(k, None), {}),
    "DeBERTa-v2": ("DebertaV2ForMaskedLM", "DebertaV2Config", SHORT | dict(relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8), lambda k: heads(k, None), {}),
    "T5": ("T5ForConditionalGeneration", "T5Config", dict(vocab_size=50, num_layers=2), lambda k: dict(d_model=32 * k, num_heads=2 * k, d_kv=16, d_ff=48 * k), {}),
    "T5, its own factor undone": ("T5ForConditionalGeneration", "T5Config", dict(vocab_size=50, num_layers=2), lambda k: dict(d_model=32 * k, num_heads=2 * k, d_kv=16, d_ff=48 * k), dict(multipliers={"lm_head": 2**0.5})),
    "Whisper": ("WhisperForConditionalGeneration", "WhisperConfig", dict(vocab_size=50, encoder_layers=1, decoder_layers=1, max_source_positions=20, max_target_positions=16, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0), lambda k: dict(d_model=32 * k, encoder_attention_heads=2 * k, decoder_attention_heads=2 * k, encoder_ffn_dim=64 * k, decoder_ffn_dim=64 * k), {}),
    "CLIP text": ("CLIPTextModel", "CLIPTextConfig", SMALL, lambda k: heads(k, None), {}),
    "wav2vec 2.0, weight norm": ("Wav2Vec2Model", "Wav2Vec2Config", dict(num_hidden_layers=1, num_conv_pos_embedding_groups=4, num_conv_pos_embeddings=8), lambda k: heads(k, None) | dict(conv_dim=[8 * k] * 7), {}),
    "ViT": ("ViTForImageClassification", "ViTConfig", dict(image_size=16, patch_size=4, num_hidden_layers=2), lambda k: heads(k, None), {}),
    "Swin": ("SwinForImageClassification", "SwinConfig", dict(image_size=32, patch_size=2, window_size=4, depths=[2, 2]), lambda k: dict(embed_dim=8 * k, num_heads=[2 * k, 4 * k]), {}),
    "ConvNeXt": ("ConvNextForImageClassification", "ConvNextConfig", dict(depths=[1, 1, 1, 1], image_size=32), lambda k: dict(hidden_sizes=[8 * k, 16 * k, 32 * k, 64 * k]), {}),
    "ResNet": ("ResNetForImageClassification", "ResNetConfig", dict(depths=[1, 1, 1, 1]), lambda k: dict(embedding_size=8 * k, hidden_sizes=[16 * k, 32 * k, 64 * k, 128 * k]), {}),
}  # fmt: skip


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of the first output against fixed classes."""
    out = model(*batch[0], **batch[1])
    rows = (out.logits if hasattr(out, "logits") else out[0]).flatten(0, -2)
    if not hasattr(out, "logits"):  # features grow with the model
        return rows.square().mean()
    return F.cross_entropy(rows, 7 * torch.arange(len(rows)) % rows.shape[-1])


def main() -> int:
    """Print the table; 1 where a plan that claims exactness fails its verification unannounced."""
    import transformers  # pyright: ignore[reportMissingImports]

    false = 0
    for name, (model_class, config_class, common, sizes, options) in CASES.items():
        make = getattr(transformers, model_class)
        config = getattr(transformers, config_class)
        torch.manual_seed(0)
        small, big = (make(config(**common, **sizes(k))) for k in (1, 2))
        batch = guessed_batch(small)
        optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            loss(small.train(), batch).backward()
            optimizer.step()
        record = mt.grow(
            small, optimizer, to=big, batches=[batch] * 3, loss=loss, show=False, verify="report", **options
        ).record
        found = record.verification
        claim = "exact" if record.plan.exact else "not exact"
        verdict = str(found).splitlines()[0] if found is not None else "not verified"
        print(f"{name:28} {claim:10} {verdict}", flush=True)
        for reason in dict.fromkeys(t.inexact for t in record.plan.tensors if t.inexact):
            print(f"{'':28} · {reason}")
        false += record.plan.exact and not (found is not None and found.ok) and name != "T5"
    return 1 if false else 0


if __name__ == "__main__":
    sys.exit(main())
