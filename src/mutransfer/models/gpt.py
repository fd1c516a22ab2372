"""GPT: a pre-norm decoder-only Transformer whose width grows by heads or by head size."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.models.config import LATER, check_choice, check_flag, check_number, check_whole, factory
from mutransfer.models.layers import ACTIVATIONS, Embedding, Linear, norm_layer

Norm = Literal["layernorm", "rmsnorm", "none"]
Positions = Literal["learned", "rotary", "none"]
Activation = Literal["gelu", "relu", "relu2", "swiglu"]
ResidualInit = Literal["plain", "scaled"]
ZeroInit = Literal["query", "head", "branch", "embedding"]

ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class GPTConfig:
    """Everything that defines a GPT. Raises `InputError` for sizes that do not divide and for unknown names.

    Width grows by adding heads (`n_heads=None`: `width // head_size` heads) or by widening them (`n_heads` given:
    each of `width // n_heads`, and `head_size` is not used). `heads`, `groups`, `head_width` are the resolved numbers.
    """

    vocab_size: int = 256
    context: int = 256  # longest sequence, in tokens
    width: int = 256
    depth: int = 4  # residual blocks, each with an attention and an MLP branch
    head_size: int = 64
    n_heads: int | None = None
    kv_heads: int | None = None  # None: as many as query heads
    mlp_ratio: float = 4.0
    norm: Norm = "layernorm"
    norm_gain: bool = True  # also of the query and key norms
    bias: bool = False  # of every Linear but the head, and of LayerNorm
    tied: bool = False
    positions: Positions = "learned"
    activation: Activation = "gelu"
    qk_norm: bool = False
    dropout: float = 0.0
    init_std: float = 0.02
    residual_init: ResidualInit = "plain"  # "scaled": the last Linear of a branch at init_std / √(2·depth), as GPT-2
    zero_init: tuple[ZeroInit, ...] = ()
    embedding_multiplier: float = field(
        default=1.0, metadata=LATER
    )  # of what enters the first block, positions included
    logit_multiplier: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        check_whole(self, "vocab_size", "context", "width", "depth", "head_size")
        for name in ("n_heads", "kv_heads"):
            if getattr(self, name) is not None:
                check_whole(self, name)
        check_number(self, "mlp_ratio", 0.0)
        check_number(self, "dropout", 0.0, below=1.0)
        check_number(self, "init_std", 0.0)
        for name in ("embedding_multiplier", "logit_multiplier"):
            check_number(self, name, 0.0)
            if getattr(self, name) == 0:
                raise InputError(f"{name}=0 leaves nothing to learn from: write a number above 0")
            object.__setattr__(self, name, float(getattr(self, name)))  # 5 and 5.0 are one model
        check_flag(self, "norm_gain", "bias", "tied", "qk_norm")
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("positions", self.positions, get_args(Positions))
        check_choice("activation", self.activation, get_args(Activation))
        check_choice("residual_init", self.residual_init, get_args(ResidualInit))
        if isinstance(self.zero_init, str):
            raise InputError(f"zero_init={self.zero_init!r} is not a tuple: write zero_init=({self.zero_init!r},)")
        object.__setattr__(self, "zero_init", tuple(self.zero_init))  # JSON gives a list
        for name in self.zero_init:
            check_choice("zero_init", name, get_args(ZeroInit))
        self._check_division()
        self._check_learns()

    def _check_division(self) -> None:
        if self.n_heads is None and self.width % self.head_size:
            down = self.width - self.width % self.head_size or self.head_size
            raise InputError(f"width={self.width} is not a multiple of head_size={self.head_size}: write width={down}")
        if self.n_heads is not None and self.width % self.n_heads:
            down = self.width - self.width % self.n_heads or self.n_heads
            raise InputError(f"width={self.width} is not a multiple of n_heads={self.n_heads}: write width={down}")
        if self.heads % self.groups:
            raise InputError(
                f"kv_heads={self.kv_heads} does not divide the {self.heads} query heads"
                f" (width={self.width}, head size {self.head_width}): write a divisor of {self.heads}"
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise InputError(f"positions='rotary' turns pairs, the head size is {self.head_width}: write an even one")
        exact = self.width * self._mlp_growth()
        if self.mlp_width < 1 or abs(exact - self.mlp_width) > 1e-6 * exact:
            raise InputError(
                f"width={self.width} times mlp_ratio={self.mlp_ratio} gives {exact:g} hidden MLP units"
                f" for {self.activation!r}: write a pair that gives a whole number"
                + " (a width divisible by 8)"
                * (self.activation == "swiglu")
            )

    def _check_learns(self) -> None:
        """Every tensor's gradient is exactly zero for ever if both sides of the logits' product start at zero."""
        if self.tied and "head" in self.zero_init:
            raise InputError(
                "zero_init='head' with tied=True would zero the embedding: write 'embedding' or tied=False"
            )
        if "embedding" in self.zero_init and self.positions != "learned" and (self.tied or "head" in self.zero_init):
            raise InputError(
                f"zero_init={self.zero_init!r} with positions={self.positions!r} and tied={self.tied}: embedding and"
                " logits are both zero and could never learn; write positions='learned' or leave one of them random"
            )

    def _mlp_growth(self) -> float:
        """Hidden MLP units per unit of width, the same at every width.

        A gate adds a third matrix, so SwiGLU takes two thirds of the units, in eighths of the width: 21/8 for ratio 4.
        """
        return round(self.mlp_ratio * 2 / 3 * 8) / 8 if self.activation == "swiglu" else self.mlp_ratio

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.width // self.head_size if self.n_heads is None else self.n_heads

    @property
    def groups(self) -> int:
        """Key and value heads; each serves `heads // groups` query heads (grouped-query attention, 2305.13245)."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """Size of one head."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden units of the MLP."""
        return round(self.width * self._mlp_growth())

    def std(self, tensor: Literal["plain", "query", "head", "branch", "embedding"]) -> float:
        """The initial standard deviation of a kind of weight; "branch" is the last Linear of a residual branch."""
        if tensor in self.zero_init:
            return 0.0
        scaled = tensor == "branch" and self.residual_init == "scaled"
        return self.init_std / math.sqrt(2 * self.depth) if scaled else self.init_std


class Attention(nn.Module):
    """Causal self-attention, `softmax(q·kᵀ/√head_size)·v`, with separate projections."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_heads = config.heads
        self.kv_heads = config.groups
        self.head_size = config.head_width
        self.dropout = config.dropout
        narrow = self.kv_heads * self.head_size
        self.q_proj = Linear(config.width, config.width, config.bias, config.std("query"))
        self.k_proj = Linear(config.width, narrow, config.bias, config.std("plain"))
        self.v_proj = Linear(config.width, narrow, config.bias, config.std("plain"))
        self.out_proj = Linear(config.width, config.width, config.bias, config.std("branch"))
        if config.qk_norm:
            self.q_norm = norm_layer("rmsnorm", self.head_size, config.norm_gain, bias=False)
            self.k_norm = norm_layer("rmsnorm", self.head_size, config.norm_gain, bias=False)
        self.qk_norm = config.qk_norm

    def forward(
        self,
        x: Tensor,  # (B, T, width)
        rotation: tuple[Tensor, Tensor] | None = None,  # cos, sin, each (T, head_size / 2)
    ) -> Tensor:  # (B, T, width)
        batch, length, width = x.shape
        q = self.q_proj(x).view(batch, length, self.n_heads, self.head_size).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.head_size).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_size).transpose(1, 2)
        if self.qk_norm:
            # Under autocast the projections are bf16; the norms run in the residual stream's precision, as their gains.
            q, k = self.q_norm(q.type_as(x)), self.k_norm(k.type_as(x))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if self.kv_heads != self.n_heads:  # repeated rather than enable_gqa=True, which few backends take
            k = k.repeat_interleave(self.n_heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.n_heads // self.kv_heads, dim=1)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """`down(φ(up(x)))`, or with SwiGLU (2002.05202) `down(silu(gate(x)) · up(x))`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.mlp_width, config.bias, config.std("plain"))
        self.gate = (
            Linear(config.width, config.mlp_width, config.bias, config.std("plain"))
            if config.activation == "swiglu"
            else None
        )
        self.down = Linear(config.mlp_width, config.width, config.bias, config.std("branch"))
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nn.Module):
    """`x ← x + attn(norm1(x))`, then `x ← x + mlp(norm2(x))`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = norm_layer(config.norm, config.width, config.norm_gain, config.bias)
        self.attn = Attention(config)
        self.norm2 = norm_layer(config.norm, config.width, config.norm_gain, config.bias)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + F.dropout(self.attn(self.norm1(x), rotation), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)


class GPT(nn.Module):
    """A GPT that maps token ids (B, T), int64, to next-token logits (B, T, vocab_size)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.width, config.std("embedding"))
        if config.positions == "learned":
            self.wpe = Embedding(config.context, config.width, config.std("plain"))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_f = norm_layer(config.norm, config.width, config.norm_gain, config.bias)
        std = config.std("embedding" if config.tied else "head")
        # A tied head is built without storage: it would be thrown away on the next line.
        device = torch.device("meta") if config.tied else None
        self.head = Linear(config.width, config.vocab_size, bias=False, std=std, device=device)
        if config.tied:
            self.head.weight = self.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        """Logits (B, T, vocab_size) of the token after each of idx (B, T). Raises `InputError` for T > context."""
        if idx.dim() != 2 or idx.shape[1] > self.config.context:
            raise InputError(
                f"token ids of shape {tuple(idx.shape)} for a GPT with context={self.config.context}:"
                " write (batch, time) with time <= context"
            )
        x = self.wte(idx)
        rotation = None
        if self.config.positions == "learned":
            x = x + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        elif self.config.positions == "rotary":
            rotation = rotary_angles(idx.shape[1], self.config.head_width, idx.device)
        if self.config.embedding_multiplier != 1.0:
            x = x * self.config.embedding_multiplier
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x, rotation)
        logits = self.head(self.norm_f(x))
        return logits if self.config.logit_multiplier == 1.0 else logits * self.config.logit_multiplier


def rotary_angles(length: int, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of `t·base^(-2i/head_size)`, each (length, head_size / 2), float32 (RoFormer, 2104.09864).

    Recomputed at every forward instead of stored: a buffer would be lost when a model is built on the meta device.
    """
    pair = torch.arange(0, head_size, 2, device=device, dtype=torch.float32)
    time = torch.arange(length, device=device, dtype=torch.float32)
    angle = torch.outer(time, ROTARY_BASE ** (-pair / head_size))
    return angle.cos(), angle.sin()


def rotate(
    x: Tensor,  # (B, heads, T, head_size)
    cos: Tensor,  # (T, head_size / 2)
    sin: Tensor,  # (T, head_size / 2)
) -> Tensor:
    """Each pair `(x_i, x_{i + head_size/2})` turned by its time's angle; sizes and relative angles are kept."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def gpt_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats of the next tokens y given x; batch = (x, y), each (B, T) int64. A scalar."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def flops_per_token(config: GPTConfig) -> float:
    """Training FLOPs per token, `6·P + 12·depth·width·context`, forward and backward.

    P counts the weights that multiply (the head's, tied or not; embeddings, gains and biases do not). The second term
    is attention at full context, not halved for causality: the convention of PaLM (2204.02311, appendix B).
    """
    narrow = config.groups * config.head_width
    attention = 2 * config.width * (config.width + narrow)
    mlp = (3 if config.activation == "swiglu" else 2) * config.width * config.mlp_width
    weights = config.depth * (attention + mlp) + config.width * config.vocab_size
    return 6.0 * weights + 12.0 * config.depth * config.width * config.context


def gpt_factory(**defaults: Any) -> Callable[..., GPT]:
    """A factory: `make = gpt_factory(vocab_size=65); model = make(width=64, depth=2)`. Any field of `GPTConfig`.

    The result can be pickled. Raises `InputError` for an unknown field.
    """
    return factory(GPT, GPTConfig, defaults)


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Tensor,  # (B, T) int64
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Tensor:  # (B, T + tokens) int64
    """The prompt continued by `tokens` samples from `softmax(logits / temperature)`; temperature 0 takes the likeliest.

    Sees the last `context` tokens. Draws on the CPU from a generator of its own, so that the same seed gives the same
    text on every device and the global random state is untouched. Raises `InputError` for a bad argument.
    """
    vocab = model.config.vocab_size
    if prompt.dim() != 2 or prompt.numel() == 0 or prompt.is_floating_point():
        raise InputError(
            f"prompt of shape {tuple(prompt.shape)} and {prompt.dtype}: write int64 ids (batch, time >= 1)"
        )
    if prompt.min() < 0 or prompt.max() >= vocab:
        raise InputError(
            f"prompt ids {prompt.min():d}..{prompt.max():d} for vocab_size={vocab}: write ids below {vocab}"
        )
    if tokens < 0:
        raise InputError(f"tokens={tokens}: write how many to generate, 0 or more")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature={temperature}: write a finite number, 0 (the likeliest token) or more")
    if top_k is not None and not 1 <= top_k <= vocab:
        raise InputError(f"top_k={top_k}: write a number from 1 to vocab_size={vocab}, or None")
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    try:
        for _ in range(tokens):
            logits = model(prompt[:, -model.config.context :])[:, -1].float().cpu()  # (B, V)
            if not logits.isfinite().all():
                raise InputError("the model's logits are not finite: load weights from before it diverged")
            if temperature == 0:
                chosen = logits.argmax(dim=-1, keepdim=True)
            else:
                if top_k is not None:
                    values, ids = logits.topk(top_k, dim=-1)
                    logits = torch.full_like(logits, -math.inf).scatter(1, ids, values)
                chosen = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
            prompt = torch.cat((prompt, chosen.to(prompt.device)), dim=1)
    finally:
        model.train(training)
    return prompt
