"""Residual branches in Hugging Face models: what was found, and whether it is right, in float64.

    pip install transformers    # any environment with torch and mutransfer
    python benchmarks/branches_in_transformers.py [name …]

For every block of the target and each branch found in it, all other branches are put to zero; then the block adds that branch
alone to its stream, and its contribution must be α times as large when the tensors that take α are. With all of them at zero the
block must add nothing (`rest`), so that no branch was overlooked. Post-norm blocks are watched at the inputs of their norms.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

import mutransfer as mt
from mutransfer import branches
from mutransfer.blocks import collapse
from mutransfer.sample import calls
from mutransfer.shapes import compare_with_stacks

ALPHA = 0.3
TEXT: dict[str, Any] = dict(vocab_size=50, hidden_size=16, intermediate_size=24, num_attention_heads=2)
GROUPED: dict[str, Any] = dict(**TEXT, num_key_value_heads=1)
PATCHES: dict[str, Any] = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, image_size=32, patch_size=8)
HEADS: dict[str, Any] = dict(vocab_size=50, n_embd=16, n_head=2, n_positions=32)
T5: dict[str, Any] = dict(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_heads=2, decoder_start_token_id=0)
OPT: dict[str, Any] = dict(vocab_size=50, hidden_size=16, ffn_dim=24, num_attention_heads=2, word_embed_proj_dim=16)
STAGES: dict[str, Any] = dict(hidden_sizes=[8, 16], image_size=32)


def text(config: str, depth: str = "num_hidden_layers", **sizes: Any) -> Callable[[int], nn.Module]:
    """A causal language model of this configuration, by depth."""
    return lambda n: hf.AutoModelForCausalLM.from_config(getattr(hf, config)(**{depth: n, **sizes}))


def plain(config: str, depth: str = "num_hidden_layers", **sizes: Any) -> Callable[[int], nn.Module]:
    """A model without a head; a list of depths where it has two stages."""

    def build(n: int) -> nn.Module:
        return hf.AutoModel.from_config(getattr(hf, config)(**{depth: [n, n] if depth == "depths" else n, **sizes}))

    return build


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "gpt2": text("GPT2Config", "n_layer", **HEADS),
    "gptj": text("GPTJConfig", "n_layer", rotary_dim=4, **HEADS),
    "gpt-neox": text("GPTNeoXConfig", **TEXT),
    "opt": text("OPTConfig", **OPT),
    "opt, post-norm": text("OPTConfig", do_layer_norm_before=False, **OPT),
    "bloom": text("BloomConfig", "n_layer", vocab_size=50, hidden_size=16, n_head=2),
    "falcon": text("FalconConfig", vocab_size=50, hidden_size=16, num_attention_heads=2),
    "phi": text("PhiConfig", **TEXT),
    "llama": text("LlamaConfig", **GROUPED),
    "mistral": text("MistralConfig", **GROUPED),
    "mixtral": text("MixtralConfig", num_local_experts=4, **GROUPED),
    "qwen2": text("Qwen2Config", **GROUPED),
    "qwen2-moe": text("Qwen2MoeConfig", num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8, **GROUPED),
    "gemma2": text("Gemma2Config", head_dim=8, **GROUPED),
    "olmo2": text("Olmo2Config", **GROUPED),
    "gpt-oss": text("GptOssConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=2, **GROUPED),
    "granite": text("GraniteConfig", residual_multiplier=0.3, **GROUPED),
    "mamba": text("MambaConfig", vocab_size=50, hidden_size=16, state_size=4, time_step_rank=2, residual_in_fp32=False),
    "bert": plain("BertConfig", max_position_embeddings=64, **TEXT),
    "deberta": plain("DebertaV2Config", relative_attention=True, max_position_embeddings=64, **TEXT),
    "distilbert": plain("DistilBertConfig", "n_layers", vocab_size=50, dim=16, hidden_dim=24, n_heads=2),
    "t5": plain("T5Config", "num_layers", **T5),
    "t5, gated": plain("T5Config", "num_layers", feed_forward_proj="gated-gelu", **T5),
    "vit": plain("ViTConfig", **PATCHES),
    "dinov2": plain("Dinov2Config", mlp_ratio=2, **{k: v for k, v in PATCHES.items() if k != "intermediate_size"}),
    "swin-v2": plain("Swinv2Config", "depths", image_size=32, patch_size=4, embed_dim=8, num_heads=[2, 2], window_size=4),
    "convnext": plain("ConvNextConfig", "depths", num_stages=2, **STAGES),
    "resnet": plain("ResNetConfig", "depths", embedding_size=8, hidden_sizes=[16, 32]),
}  # fmt: skip


class Scaled:
    """A forward hook that multiplies an output."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Any:
        return out * self.factor if isinstance(out, Tensor) else (out[0] * self.factor, *out[1:])


def blocks_of(model: nn.Module, stacks: Sequence[Any]) -> list[tuple[str, nn.Module]]:
    """The growing blocks with their paths, innermost numbering included."""
    return [(f"{s.path}.{name}", block) for s in stacks for name, block in model.get_submodule(s.path).named_children()]


@torch.no_grad()
def scaled(model: nn.Module, ends: Sequence[branches.End], factors: Sequence[float], run: Callable[[], Any]) -> Any:
    """The result of `run` with each end's tensors (or its hook) multiplied."""
    saved, hooks = [], []
    for end, factor in zip(ends, factors, strict=True):
        module = model.get_submodule(end.path)
        if not end.attributes:
            hooks.append(module.register_forward_hook(Scaled(factor)))
        for name in end.attributes:
            parameter = module.get_parameter(name)
            saved.append((parameter, parameter.clone()))
            parameter.mul_(factor)
    try:
        return run()
    finally:
        for parameter, values in saved:
            parameter.copy_(values)
        for hook in hooks:
            hook.remove()


def judge(build: Callable[[int], nn.Module]) -> str:
    """RIGHT, WRONG or REFUSED, with the numbers behind it."""
    torch.manual_seed(0)
    small, big = build(2).eval(), build(4).double().eval()
    shapes, found = compare_with_stacks(small, big, strict=False)
    stacks, start = branches.depth_stacks(found), time.perf_counter()
    try:
        ends = branches.find_ends(big, shapes, stacks, (), small)
    except mt.InputError as error:
        return f"REFUSED {error}"
    took = time.perf_counter() - start
    with torch.no_grad():
        for name, p in big.named_parameters():
            p.normal_(0.0, 0.3).add_(0.5 if p.ndim == 1 and name.endswith("weight") else 0.0)
    for module in big.modules():
        if hasattr(module, "config"):
            setattr(module.config, "_experts_implementation", "eager")  # noqa: B010 (the grouped product has no float64)
    first: dict[str, tuple[Any, Any]] = {}
    handles = [block.register_forward_pre_hook(lambda m, a, k, p=path: first.setdefault(p, (a, k)) and None, with_kwargs=True)
               for path, block in blocks_of(big, stacks)]  # fmt: skip
    args, kwargs = next(iter(calls(big)))
    with torch.no_grad():
        big(
            *args,
            **{k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in kwargs.items()},
        )
    for handle in handles:
        handle.remove()
    errors, rest = [], []
    for path, block in blocks_of(big, stacks):
        mine = [end for end in ends if f"{end.path}.".startswith(f"{path}.")]
        sums = post_norms(block)
        got = [contribution(big, block, *first[path], mine, i, sums) for i in range(len(mine))]
        errors += [error for error, _ in got]
        rest += [left for _, left in got]
    verdict = "RIGHT" if errors and max(errors) < 1e-10 and max(rest) < 1e-10 else "WRONG"
    names = sorted({collapse(end.path) + (" (hook)" if not end.attributes else "") for end in ends})
    return f"{verdict} {len(errors):3d} branches, error {max(errors):.0e}, rest {max(rest):.0e}, {took:.2f} s: {', '.join(names)}"


def post_norms(block: nn.Module) -> list[nn.Module]:
    """The modules behind the sums of a post-norm block, in order; none for a pre-norm one."""
    named = dict(block.named_modules())
    for paths in (
        ("attention.output.LayerNorm", "output.LayerNorm"),
        ("sa_layer_norm", "output_layer_norm"),
        ("activation",),
    ):
        if all(path in named for path in paths) and not hasattr(block, "ffn_norm"):
            return [named[path] for path in paths]
    if hasattr(block, "do_layer_norm_before") and not block.do_layer_norm_before:
        return [named["self_attn_layer_norm"], named["final_layer_norm"]]
    return []


def contribution(
    model: nn.Module, block: nn.Module, args: Any, kwargs: Any, ends: list[branches.End], i: int, sums: list[nn.Module]
) -> tuple[float, float]:
    """(relative error of branch i's contribution at α, what the block adds with every branch at zero)."""
    stream = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())

    def run() -> list[Tensor]:
        seen: list[Tensor] = []
        handles = [m.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()) or None) for m in sums]
        out = block(*args, **kwargs)
        for handle in handles:
            handle.remove()
        return seen if sums else [out[0] if isinstance(out, tuple) else out]

    others = 1.0 if sums else 0.0
    one, part, none = (
        scaled(model, ends, [f if j == i else others for j in range(len(ends))], run) for f in (1.0, ALPHA, 0.0)
    )
    at = next(k for k, (a, b) in enumerate(zip(one, none, strict=True)) if not torch.equal(a, b))
    whole = one[at] - none[at]
    error = float((part[at] - none[at] - ALPHA * whole).abs().max() / whole.abs().max())
    left = 0.0 if sums else float((none[0] - stream).abs().max() / stream.abs().max())
    return error, left


def main() -> None:
    """Judge the named models, or all."""
    hf.logging.set_verbosity_error()
    tally: dict[str, int] = {}
    for name in sys.argv[1:] or MODELS:
        text = judge(MODELS[name])
        tally[text.split()[0]] = tally.get(text.split()[0], 0) + 1
        print(f"{name:15s} {text}", flush=True)
    print(", ".join(f"{count} {verdict.lower()}" for verdict, count in sorted(tally.items())))


if __name__ == "__main__":
    main()
