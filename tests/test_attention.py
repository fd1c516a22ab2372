"""Claims about attention: when the head size grows, logits are q·k/d, equal to the user's own at the base; nothing else moves."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mutransfer as mt
from mutransfer.attention import factors, head_size, looks_like_attention
from mutransfer.errors import InputError
from mutransfer.laws import measure
from mutransfer.models import GPT, GPTConfig
from mutransfer.shapes import parameters_of


class Attention(nn.Module):
    """`softmax(extra · scale · q·k) · v` with separate projections; `extra` is the test's own factor on the logits."""

    names = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.extra = heads, 1.0
        self.size = width // heads
        for name in self.names:
            self.add_module(name, nn.Linear(width, width))

    def scale(self) -> float:
        return self.size**-0.5

    def query_key_value(self, x):
        return [getattr(self, name)(x) for name in self.names[:3]]

    def shape_heads(self, q, k):
        return q, k

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for t in self.query_key_value(x))
        q, k = self.shape_heads(q, k)
        p = torch.softmax(self.extra * self.scale() * q @ k.mT, -1)
        return getattr(self, self.names[3])((p @ v).transpose(-2, -3).flatten(-2))


class OtherNames(Attention):
    names = ("query", "key", "value", "dense")


class Packed(Attention):
    names = ("c_attn", "c_proj")

    def __init__(self, width: int, heads: int) -> None:
        nn.Module.__init__(self)
        self.n_head, self.num_heads, self.extra = heads, heads, 1.0
        self.size = self.head_dim = width // heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.names = ("c_attn", "", "", "c_proj")

    def query_key_value(self, x):
        return self.c_attn(x).chunk(3, -1)


class QueryNorm(Attention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q_norm, self.k_norm = nn.LayerNorm(self.size), nn.LayerNorm(self.size)

    def shape_heads(self, q, k):
        return self.q_norm(q), self.k_norm(k)


class ShiftedGain(nn.Module):
    """Stores gain − 1: its zeros are a gain of one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


class ShiftedQueryNorm(QueryNorm):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q_norm, self.k_norm = ShiftedGain(self.size), ShiftedGain(self.size)


class BareNorm(QueryNorm):
    """Norms without a gain: only a hook can carry the factor."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q_norm, self.k_norm = (nn.RMSNorm(self.size, elementwise_affine=False) for _ in range(2))


class OwnScale(Attention):
    """Declares its scale; it is not 1/√d."""

    power = 0.0

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.head_dim, self.scaling = self.size, 0.25 * self.size**self.power

    def scale(self) -> float:
        return self.scaling


class ScaleLikeOneOverD(OwnScale):
    power = -1.0


class BareQuery(Attention):
    names = ("q", "k_proj", "v_proj", "o_proj")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        del self.q
        self.q = nn.Parameter(torch.randn(width, width) / width**0.5)

    def query_key_value(self, x):
        return [F.linear(x, self.q), self.k_proj(x), self.v_proj(x)]


def absorb(base: nn.Module, target: nn.Module, declared=None) -> list[str]:
    """Put the factors of `factors` into the target's tensors and hooks; the notes."""
    laws = {n: measure(p.module._parameters[p.attribute]) for n, p in parameters_of(target).items()}
    absorbed, hooks, notes = factors(base, target, {}, declared, laws)
    with torch.no_grad():
        for item in absorbed:
            module = target.get_submodule(item.module)
            for attribute in item.attributes:
                if module._parameters.get(attribute) is not None:
                    module._parameters[attribute].mul_(item.factor)
    for hook in hooks:
        assert hook.where == "output"
        target.get_submodule(hook.module).register_forward_hook(lambda _m, _i, out, t=hook.factor: out * t)
    return notes


KINDS = [
    (Attention, math.sqrt(0.25)),
    (OtherNames, math.sqrt(0.25)),
    (Packed, math.sqrt(0.25)),
    (QueryNorm, math.sqrt(0.25)),
    (ShiftedQueryNorm, math.sqrt(0.25)),
    (BareNorm, math.sqrt(0.25)),
    (BareQuery, math.sqrt(0.25)),
    (OwnScale, 0.25),  # a constant scale: q·k itself grows like d
    (ScaleLikeOneOverD, 1.0),
]


@pytest.mark.parametrize(("kind", "factor"), KINDS)
@pytest.mark.parametrize("heads", [(2, 2), (2, 4)])
def test_logits_fall_like_one_over_d_and_values_stay(kind, factor, heads) -> None:
    """Head size 8 → 32, with and without more heads: the output is that of logits multiplied by the factor."""
    torch.manual_seed(0)
    base, target = kind(8 * heads[0], heads[0]).double(), kind(32 * heads[1], heads[1]).double()
    x = torch.randn(3, 5, 32 * heads[1], dtype=torch.float64)
    target.extra = factor
    want = target(x)
    target.extra = 1.0
    plain = target(x)
    absorb(base, target)
    torch.testing.assert_close(target(x), want, rtol=1e-9, atol=1e-12)
    assert factor == 1.0 or not torch.allclose(plain, want, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 7}, {"add_bias_kv": True}, {"bias": False}])
def test_torchs_own_attention(options) -> None:
    torch.manual_seed(0)
    base, target = (nn.MultiheadAttention(n, 2, batch_first=True, **options).double() for n in (16, 64))
    for p in target.parameters():
        nn.init.normal_(p, 0.0, 0.3)
    x = torch.randn(3, 5, 64, dtype=torch.float64)
    k, v = (torch.randn(3, 6, options.get(d, 64), dtype=torch.float64) for d in ("kdim", "vdim"))
    reference = nn.MultiheadAttention(64, 2, batch_first=True, **options).double()
    reference.load_state_dict(target.state_dict())
    with torch.no_grad():  # the query's rows alone, by half: 1/√d → 1/d at four times the size
        rows = reference.q_proj_weight if reference.in_proj_weight is None else reference.in_proj_weight[:64]
        rows.mul_(0.5)
        if reference.in_proj_bias is not None:
            reference.in_proj_bias[:64] *= 0.5
    absorb(base, target)
    torch.testing.assert_close(target(x, k, v)[0], reference(x, k, v)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [Attention, Packed, QueryNorm, OwnScale, nn.MultiheadAttention])
def test_a_fixed_head_size_needs_nothing(kind) -> None:
    small, big = kind(16, 2), kind(64, 8)
    before = {n: p.clone() for n, p in big.named_parameters()}
    assert absorb(small, big) == []
    assert all(torch.equal(p, before[n]) for n, p in big.named_parameters())


def test_the_head_size_of_packed_and_bare_projections_is_read_too() -> None:
    packed, bare = Packed(48, 4), BareQuery(48, 4)
    del packed.head_dim
    assert (head_size(packed), head_size(bare)) == (12, 12)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"head_dim": 8}, 8),
        ({"attention_head_size": 8, "num_attention_heads": 3}, 8),
        ({"n_head": 4, "n_embd": 48}, 12),
        ({"num_heads": 4}, 12),  # from the query's rows
        ({"config": type("C", (), {"num_attention_heads": 6, "hidden_size": 96})()}, 8),
        ({"head_dim": True, "num_heads": 4}, 12),
        ({"num_heads": 5}, None),  # does not divide
        ({"nh": 4}, 12),
        ({"attn_heads": 4}, 12),
        ({"hs": 6}, 6),
        ({}, None),
    ],
)
def test_the_head_size_is_read_from_what_the_module_declares(attributes, size) -> None:
    module = nn.Module()
    module.q_proj = nn.Linear(48, 48)
    for name, value in attributes.items():
        setattr(module, name, value)
    assert head_size(module) == size


def test_an_undeclared_head_size_is_refused_with_the_line_to_write() -> None:
    class Silent(Attention):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__(width, heads)
            del self.num_heads

    with pytest.raises(InputError, match=r"say head_size=\(base, target\)"):
        absorb(Silent(16, 2), Silent(64, 2))
    assert absorb(Silent(16, 2), Silent(64, 2), declared=(8, 8)) == []
    assert "taken as fixed" in absorb(Silent(16, 2), Silent(16, 2))[0]  # nothing grows here: nothing to decide


def test_the_users_own_head_sizes_decide() -> None:
    big = Attention(64, 8)
    before = big.q_proj.weight.detach().clone()
    absorb(Attention(16, 2), big, declared=(4, 16))
    torch.testing.assert_close(big.q_proj.weight, before / 2)
    big = Attention(64, 2)
    before = big.q_proj.weight.detach().clone()
    absorb(Attention(16, 2), big, declared=(1, 1))
    assert torch.equal(big.q_proj.weight, before)


class StrangeAttention(nn.Module):
    """An attention by its class, with projections that no name tells apart."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.alpha, self.beta, self.gamma = (nn.Linear(width, width) for _ in range(3))


class PackedWithoutOutput(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim, self.qkv, self.finish = width // heads, nn.Linear(width, 3 * width), nn.Linear(width, width)


class NormInCode(Attention):
    """Normalises the query in its forward, without a gain: a factor in the projection would be undone."""

    def forward(self, x):
        q, k, v = self.query_key_value(x)
        q = F.rms_norm(q, (self.size,))
        return self.o_proj(q * k * v)


@pytest.mark.parametrize("kind", [StrangeAttention, PackedWithoutOutput, NormInCode])
def test_what_cannot_be_scaled_is_refused_and_the_line_works(kind) -> None:
    with pytest.raises(mt.InputError, match=r"head size 8 → 32.*head_size=\(1, 1\)"):
        absorb(kind(16, 2), kind(64, 2))
    assert absorb(kind(16, 2), kind(64, 2), declared=(1, 1)) == []
    assert absorb(kind(16, 2), kind(64, 8)) == []


def test_cosine_attention_needs_no_factor() -> None:
    class Cosine(Attention):
        def forward(self, x):
            q, k, v = self.query_key_value(x)
            return self.o_proj(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT @ v)

    big = Cosine(64, 2)
    before = big.q_proj.weight.detach().clone()
    assert "unit vectors" in absorb(Cosine(16, 2), big)[0]
    assert torch.equal(big.q_proj.weight, before)


def test_a_mixer_with_an_in_proj_is_no_attention() -> None:
    class MambaMixer(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.head_dim, self.in_proj, self.out_proj = n, nn.Linear(n, 4 * n), nn.Linear(n, n)

    assert not looks_like_attention(MambaMixer(8))
    assert absorb(MambaMixer(8), MambaMixer(16)) == []


def test_a_factor_of_the_users_own_that_changes_with_width_is_mentioned() -> None:
    class Scaled(nn.Embedding):
        def __init__(self, n: int) -> None:
            super().__init__(11, n)
            self.embed_scale = n**0.5

    class Rooted(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.d_model, self.emb = n, nn.Embedding(11, n)

        def forward(self, x):
            return self.emb(x) * math.sqrt(self.d_model)

    assert "embed_scale goes 2 → 4" in absorb(Scaled(4), Scaled(16))[0]
    assert "d_model goes 4 → 16" in absorb(Rooted(4), Rooted(16))[0]
    assert absorb(nn.Embedding(11, 4), nn.Embedding(11, 16)) == []


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("norm_gain", [False, True])
def test_the_reference_gpt_carries_the_factor_once(qk_norm, norm_gain) -> None:
    """Every way that the plan can carry √(d_base/d) is one factor on the query of each block."""
    small, big = (
        GPT(GPTConfig(vocab_size=11, context=8, width=n, depth=1, n_heads=2, qk_norm=qk_norm, norm_gain=norm_gain))
        for n in (16, 64)
    )
    plan = mt.plan(big, base=small)
    carried = [row.name for row in plan.rows if "attention q·k/d" in row.derivation]
    carried += [hook.module for hook in plan.hooks if "attention q·k/d" in hook.reason]
    assert len(carried) == 1 and ("q_norm" in carried[0]) == qk_norm
    assert not any("attention" in row.derivation for row in mt.plan(big, base=small, recipe="sp").rows)
