"""GPT: its names, sizes, initialization, symmetries and refusals."""

import copy
import itertools
import math
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mutransfer.errors import InputError
from mutransfer.models import GPT, GPTConfig, flops_per_token, gpt_factory, gpt_loss
from mutransfer.models.gpt import rotary_angles, rotate

TINY = GPTConfig(vocab_size=11, context=12, width=32, depth=2, head_size=8)


def build(seed: int = 0, **fields) -> GPT:
    torch.manual_seed(seed)
    return GPT(replace(TINY, **fields))


def tokens(batch: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


COMBINATIONS = list(
    itertools.product(
        ("gelu", "relu", "relu2", "swiglu"),
        (("layernorm", True), ("layernorm", False), ("rmsnorm", True), ("rmsnorm", False), ("none", True)),
        ("learned", "rotary", "none"),
    )
)


@pytest.mark.parametrize(("activation", "norm", "positions"), COMBINATIONS)
def test_every_combination_trains_every_tensor(activation, norm, positions):
    model = build(
        activation=activation, norm=norm[0], norm_gain=norm[1], positions=positions, bias=True, qk_norm=True, kv_heads=2
    )
    x, y = tokens(), tokens(seed=2)
    assert model(x).shape == (2, 12, 11)
    loss = gpt_loss(model, (x, y))
    assert loss.shape == () and abs(loss.item() - math.log(11)) < 0.2
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if not name.endswith("k_proj.bias"):  # softmax ignores a shift common to all keys: zero without key norm
            assert p.grad.abs().max() > 0, name


def test_names_are_the_contract():
    plain = {name for name, _ in build(depth=1).named_parameters()}
    assert plain == {
        "wte.weight",
        "wpe.weight",
        "blocks.0.norm1.weight",
        "blocks.0.attn.q_proj.weight",
        "blocks.0.attn.k_proj.weight",
        "blocks.0.attn.v_proj.weight",
        "blocks.0.attn.out_proj.weight",
        "blocks.0.norm2.weight",
        "blocks.0.mlp.up.weight",
        "blocks.0.mlp.down.weight",
        "norm_f.weight",
        "head.weight",
    }
    full = {n for n, _ in build(depth=1, qk_norm=True, activation="swiglu", bias=True).named_parameters()}
    assert full - plain == {f"blocks.0.attn.{n}_norm.weight" for n in "qk"} | {"blocks.0.mlp.gate.weight"} | {
        f"blocks.0.{n}.bias"
        for n in (
            *(f"attn.{p}_proj" for p in ("q", "k", "v", "out")),
            "mlp.up",
            "mlp.gate",
            "mlp.down",
            "norm1",
            "norm2",
        )
    } | {"norm_f.bias"}
    attention = build(kv_heads=2).blocks[0].attn
    assert (attention.n_heads, attention.kv_heads, attention.head_size) == (4, 2, 8)


def test_every_matrix_is_a_linear_or_an_embedding():
    for module in build().modules():
        for _ in module.parameters(recurse=False):
            assert isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm)


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_parameter_count_is_the_hand_formula(width, bias, tied):
    n, depth, vocab, context = width, 2, 11, 12
    matrices = depth * 12 * n * n
    gains = (2 * depth + 1) * n
    biases = (depth * (4 * n + 4 * n + n) + gains) if bias else 0
    expected = matrices + gains + biases + context * n + vocab * n * (1 if tied else 2)
    assert parameters(build(width=width, bias=bias, tied=tied)) == expected


def test_gated_and_grouped_parameter_count():
    n, hidden = 32, 84  # 21/8 of the width
    expected = 2 * (2 * n * n + 2 * n * 16 + 3 * n * hidden + 2 * n) + n + 2 * 11 * n
    assert parameters(build(activation="swiglu", kv_heads=2, positions="none")) == expected


@pytest.mark.parametrize("mlp_ratio", [1.0, 2.5, 4.0])
def test_swiglu_width_grows_exactly_with_the_model(mlp_ratio):
    growth = {
        GPTConfig(width=32 * 2**k, head_size=16, activation="swiglu", mlp_ratio=mlp_ratio).mlp_width / (32 * 2**k)
        for k in range(8)
    }
    assert len(growth) == 1 and abs(growth.pop() - mlp_ratio * 2 / 3) <= 1 / 16


def test_width_grows_by_heads_or_by_head_size():
    by_heads = [GPTConfig(width=w, head_size=16) for w in (32, 64, 128)]
    assert [(c.heads, c.head_width) for c in by_heads] == [(2, 16), (4, 16), (8, 16)]
    by_size = [GPTConfig(width=w, n_heads=2) for w in (32, 64, 128)]
    assert [(c.heads, c.head_width) for c in by_size] == [(2, 16), (2, 32), (2, 64)]


@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
def test_the_future_does_not_change_the_past(positions):
    model, x = build(positions=positions), tokens()
    changed = x.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % TINY.vocab_size
    a, b = model(x), model(changed)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert (a[:, 7:] - b[:, 7:]).abs().amin(dim=1).max() > 1e-4


def test_attention_is_the_textbook_formula():
    attention, x = build().blocks[0].attn, torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    q, k, v = (p(x).view(2, 5, 4, 8).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    scores = (q @ k.transpose(2, 3) / math.sqrt(8)).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 32)
    torch.testing.assert_close(attention(x), attention.out_proj(y))


def test_grouped_heads_equal_repeated_full_heads():
    grouped, full = build(kv_heads=2), build(seed=1)
    state = grouped.state_dict()
    for name in state:
        if "k_proj" in name or "v_proj" in name:
            state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(state)
    torch.testing.assert_close(grouped(tokens()), full(tokens()))


def test_rotary_products_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator).expand(1, 1, 40, 8) for _ in range(2))
    cos, sin = rotary_angles(40, 8, torch.device("cpu"))
    products = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(2, 3))[0, 0]
    for distance in (0, 1, 5, 30):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=2e-5, rtol=0)
    assert products[:, 0].std() > 0.05
    torch.testing.assert_close(rotate(q, cos, sin).norm(dim=-1), q.norm(dim=-1))


def test_rotary_logits_do_not_see_a_common_shift():
    model, x = build(positions="rotary", init_std=0.2), tokens()
    cos, sin = rotary_angles(12 + 7, 8, torch.device("cpu"))
    h = model.wte(x)
    for block in model.blocks:
        h = block(h, (cos[7:], sin[7:]))
    torch.testing.assert_close(model.head(model.norm_f(h)), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("positions", "sees_order"), [("learned", True), ("rotary", True), ("none", False)])
def test_one_block_sees_the_order_of_the_past_only_through_positions(positions, sees_order):
    model = build(positions=positions, depth=1, init_std=0.3)
    x = torch.tensor([[1, 2, 3, 4, 5]])
    swapped = torch.tensor([[3, 2, 1, 4, 5]])
    difference = (model(x)[:, -1] - model(swapped)[:, -1]).abs().max()
    assert (difference > 1e-3) == sees_order


def test_query_key_norm_makes_logits_independent_of_the_projections_size():
    model, x = build(qk_norm=True, init_std=1.0), tokens()
    before = model(x)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q_proj.weight *= 8
            block.attn.k_proj.weight *= 8
    torch.testing.assert_close(model(x), before, atol=1e-3, rtol=1e-3)


def test_tied_head_is_the_embedding():
    model = build(tied=True)
    assert model.head.weight is model.wte.weight
    assert "head.weight" not in dict(model.named_parameters())
    assert copy.deepcopy(model).head.weight.shape == (11, 32)
    clone = copy.deepcopy(model)
    assert clone.head.weight is clone.wte.weight
    gpt_loss(model, (tokens(), tokens(seed=2))).backward()
    assert model.wte.weight.grad is not None


@pytest.mark.parametrize(
    ("zero", "suffixes"),
    [
        ("query", ("q_proj.weight",)),
        ("head", ("head.weight",)),
        ("branch", ("out_proj.weight", "down.weight")),
        ("embedding", ("wte.weight",)),
    ],
)
def test_zero_init_zeroes_exactly_what_it_names(zero, suffixes):
    for name, p in build(zero_init=(zero,)).named_parameters():
        assert (p.abs().max() == 0) == name.endswith(suffixes), name


def test_zero_branches_make_the_model_its_embedding():
    model, x = build(zero_init=("branch",)), tokens()
    h = model.wte(x) + model.wpe(torch.arange(12))
    torch.testing.assert_close(model(x), model.head(model.norm_f(h)))


def test_zero_head_starts_at_the_uniform_loss():
    loss = gpt_loss(build(zero_init=("head",)), (tokens(), tokens(seed=2)))
    torch.testing.assert_close(loss, torch.tensor(math.log(11)))


@pytest.mark.parametrize("residual_init", ["plain", "scaled"])
def test_initial_law_of_every_tensor(residual_init):
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            vocab_size=300, width=128, depth=8, bias=True, init_std=0.05, residual_init=residual_init, qk_norm=True
        )
    )
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            last = name.endswith(("out_proj.weight", "down.weight")) and residual_init == "scaled"
            std = 0.05 / 4 if last else 0.05  # 1/√(2·8) = 1/4
            assert abs(p.std().item() / std - 1) < 0.02, name
            assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name


def test_same_seed_same_model():
    a, b, c = build(seed=3), build(seed=3), build(seed=4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.wte.weight, c.wte.weight)


def test_redrawing_a_materialised_meta_model_follows_the_same_law():
    with torch.device("meta"):
        model = build(residual_init="scaled", zero_init=("query",))
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert (model.blocks[0].attn.q_proj.weight == 0).all()
    assert abs(model.blocks[0].mlp.down.weight.std() / 0.01 - 1) < 0.1
    assert model(tokens()).isfinite().all()


def test_a_big_model_costs_no_memory_on_the_meta_device():
    config = GPTConfig(vocab_size=50304, context=1024, width=2048, depth=48)
    with torch.device("meta"):
        model = GPT(config)
    assert parameters(model) == 48 * (12 * 2048**2 + 2 * 2048) + 2048 + (2 * 50304 + 1024) * 2048
    assert all(p.is_meta for p in model.parameters()) and not list(model.buffers())


def test_dropout_acts_in_training_alone():
    model, x = build(dropout=0.5, zero_init=("branch",)), tokens()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), build(zero_init=("branch",)).eval()(x))


@pytest.mark.parametrize("fields", [{}, {"activation": "swiglu", "kv_heads": 2}, {"tied": True}], ids=str)
def test_flops_equal_what_pytorch_counts(fields):
    model = build(**fields)
    # The counter knows the matrix products of the plain backend, not the fused kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens())
    forward = counter.get_total_flops() / 24  # tokens
    assert flops_per_token(model.config) == pytest.approx(3 * forward, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_whole_model_follows_one_dtype(dtype):
    model = build(positions="rotary", qk_norm=True, norm="rmsnorm").to(dtype)
    logits = model(tokens())
    assert logits.dtype == dtype
    torch.testing.assert_close(
        logits.float(), build(positions="rotary", qk_norm=True, norm="rmsnorm")(tokens()), atol=0.02, rtol=0.1
    )


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "none"])
def test_bf16_autocast_trains(norm):
    model = build(positions="rotary", qk_norm=True, norm=norm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = gpt_loss(model, (tokens(), tokens(seed=2)))
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad is not None for p in model.parameters())


def test_loss_is_the_mean_cross_entropy():
    model, x, y = build(), tokens(), tokens(seed=2)
    expected = -model(x).log_softmax(-1).gather(2, y[..., None]).mean()
    torch.testing.assert_close(gpt_loss(model, (x, y)), expected)
    torch.testing.assert_close(gpt_loss(model, (x, y)), F.cross_entropy(model(x).view(-1, 11), y.view(-1)))


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_one_multiplier_on_embedding_and_logits_of_a_tied_model_is_a_gauge(positions):
    """Input and logits × a of one shared tensor: a model without either whose embeddings are a times as large."""
    scaled = build(tied=True, positions=positions, embedding_multiplier=5, logit_multiplier=5)
    plain = build(tied=True, positions=positions)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.mul_(5 if name.startswith(("wte", "wpe")) else 1)
    torch.testing.assert_close(scaled(tokens()), plain(tokens()))
    (halved, same), x = (build(logit_multiplier=m) for m in (0.5, 1.0)), tokens()
    assert torch.equal(2 * halved(x), same(x))


def test_factory_is_config_and_model_in_one_and_can_be_pickled():
    make = pickle.loads(pickle.dumps(gpt_factory(vocab_size=65, head_size=16)))
    model = make(width=64, depth=2)
    assert isinstance(model, GPT)
    assert model.config == GPTConfig(vocab_size=65, head_size=16, width=64, depth=2)
    assert make(vocab_size=7).config.vocab_size == 7


def test_config_survives_json_lists_and_numpy_integers():
    numpy = pytest.importorskip("numpy")
    config = GPTConfig(width=numpy.int64(64), zero_init=["query"])
    assert config == GPTConfig(width=64, zero_init=("query",)) and type(config.width) is int
    assert hash(config) == hash(GPTConfig(width=64, zero_init=("query",)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 100}, ("width=100", "head_size=64", "write width=64")),
        ({"width": 48, "head_size": 64}, ("width=48", "write width=64")),
        ({"width": 100, "n_heads": 3}, ("width=100", "n_heads=3", "width=99")),
        ({"width": 0}, ("width=0",)),
        ({"width": 64.0}, ("width=64.0", "whole number")),
        ({"width": True}, ("width=True",)),
        ({"depth": -2}, ("depth=-2",)),
        ({"vocab_size": "many"}, ("vocab_size='many'",)),
        ({"context": 0}, ("context=0",)),
        ({"head_size": 0}, ("head_size=0",)),
        ({"n_heads": 0}, ("n_heads=0",)),
        ({"kv_heads": 3}, ("kv_heads=3", "4 query heads")),
        ({"kv_heads": 8}, ("kv_heads=8", "4 query heads")),
        ({"mlp_ratio": -1.0}, ("mlp_ratio=-1.0",)),
        ({"mlp_ratio": math.nan}, ("mlp_ratio=nan",)),
        ({"mlp_ratio": 1 / 3}, ("width=256", "mlp_ratio=0.333")),
        ({"mlp_ratio": 0}, ("mlp_ratio=0",)),
        ({"width": 36, "head_size": 12, "activation": "swiglu"}, ("width=36", "divisible by 8")),
        ({"norm": "groupnorm"}, ("norm='groupnorm'", "'layernorm', 'rmsnorm', 'none'")),
        ({"norm": "rmsnrm"}, ("did you mean 'rmsnorm'",)),
        ({"positions": "alibi"}, ("positions='alibi'",)),
        ({"activation": "tanh"}, ("activation='tanh'",)),
        ({"residual_init": "small"}, ("residual_init='small'",)),
        ({"zero_init": ("key",)}, ("zero_init='key'",)),
        ({"zero_init": "head"}, ("zero_init=('head',)",)),
        ({"zero_init": ("head",), "tied": True}, ("tied=True",)),
        ({"zero_init": ("embedding",), "tied": True, "positions": "rotary"}, ("never learn",)),
        ({"zero_init": ("embedding", "head"), "positions": "none"}, ("never learn",)),
        ({"positions": "rotary", "width": 9, "head_size": 3}, ("'rotary'", "even")),
        ({"dropout": 1.0}, ("dropout=1.0", "< 1.0")),
        ({"dropout": -0.1}, ("dropout=-0.1",)),
        ({"init_std": -0.1}, ("init_std=-0.1",)),
        ({"init_std": math.inf}, ("init_std=inf",)),
        ({"logit_multiplier": 0}, ("logit_multiplier=0", "above 0")),
        ({"embedding_multiplier": -1.0}, ("embedding_multiplier=-1.0",)),
        ({"tied": "yes"}, ("tied='yes'", "True or False")),
    ],
    ids=str,
)
def test_wrong_config_is_one_clear_line(fields, words):
    with pytest.raises(InputError) as error:
        GPTConfig(**fields)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_unknown_field_suggests_the_closest():
    with pytest.raises(InputError, match="did you mean 'width'"):
        gpt_factory(widht=64)
    with pytest.raises(InputError, match="GPTConfig has no field 'layers'"):
        gpt_factory()(layers=3)


@pytest.mark.parametrize("shape", [(2, 13), (12,), (1, 2, 3)])
def test_wrong_token_shape_is_one_clear_line(shape):
    with pytest.raises(InputError, match=r"context=12"):
        build()(torch.zeros(shape, dtype=torch.int64))
