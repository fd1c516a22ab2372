"""Claims about residual branches: the multiplier goes to what ends each branch, or the plan refuses with a line that works."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mutransfer as mt
from mutransfer.blocks import collapse
from mutransfer.branches import in_branch, last_modules
from mutransfer.shapes import compare_with_stacks


def ends(block, declared=(), base=4, target=8, **options) -> dict[str, tuple[str, ...]]:
    """Ends of a stack of these blocks that grows from 2 to 4, with block numbers folded."""

    def model(n: int, depth: int) -> nn.Module:
        holder = nn.Module()
        holder.layers = nn.ModuleList(block(n) for _ in range(depth))
        return holder

    with torch.device("meta"):
        small, big = model(base, 2), model(target, 4)
    shapes, stacks = compare_with_stacks(small, big, **options)
    found = last_modules(big, shapes, stacks, declared)
    assert len(found) % 4 == 0
    return {re.sub(r"^layers\.\d+\.?", "", path): attributes for path, attributes in found.items()}


class GainRMSNorm(nn.Module):
    """Stores gain − 1, as Gemma's norms do."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


class Attention(nn.Module):
    def __init__(self, n: int, end: str = "o_proj") -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, n)
        self.add_module(end, nn.Linear(n, n))
        self.end, self.head_dim = end, 4

    def forward(self, x):
        y = self.v_proj(x) + 0 * self.q_proj(x) * self.k_proj(x)
        return getattr(self, self.end)(y)


class SwiGLU(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(n, 3 * n), nn.Linear(n, 3 * n), nn.Linear(3 * n, n)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Llama(nn.Module):
    """Pre-norm; its norm before the MLP bears the name of what comes before it."""

    norm: type[nn.Module] = nn.RMSNorm

    def __init__(self, n: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(n), SwiGLU(n)
        self.input_layernorm, self.post_attention_layernorm = self.norm(n), self.norm(n)

    def forward(self, hidden):
        residual = hidden
        hidden = self.input_layernorm(hidden)
        hidden = self.self_attn(hidden)
        hidden = residual + hidden
        residual = hidden
        hidden = self.post_attention_layernorm(hidden)
        hidden = self.mlp(hidden)
        return residual + hidden


class Gemma2(Llama):
    """Sandwich: a norm of the same name stands after the attention, inside the branch."""

    norm = GainRMSNorm

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = self.norm(n), self.norm(n)

    def forward(self, hidden):
        residual = hidden
        hidden = self.input_layernorm(hidden)
        hidden = self.self_attn(hidden)
        hidden = self.post_attention_layernorm(hidden)
        hidden = residual + hidden
        residual = hidden
        hidden = self.pre_feedforward_layernorm(hidden)
        hidden = self.mlp(hidden)
        hidden = self.post_feedforward_layernorm(hidden)
        hidden = residual + hidden
        return hidden


class SwinV2(nn.Module):
    """A norm after each branch, under the names that pre-norm blocks use."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(n), nn.LayerNorm(n)
        self.attn, self.mlp, self.drop_path = Attention(n, "proj"), SwiGLU(n), nn.Dropout(0.1)

    def forward(self, x):
        x = x + self.drop_path(self.norm1(self._windows(x)))
        return x + self.drop_path(self.norm2(self.mlp(x)))

    def _windows(self, x):
        return self.attn(x)


class SwinV2InOneSum(SwinV2):
    def forward(self, x):
        x = x + self.drop_path(self.norm1(self.attn(x)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class PreNorm(SwinV2):
    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PostNorm(SwinV2):
    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class Parallel(SwinV2):
    """GPT-J: both branches read the same norm and are added at once."""

    def forward(self, x):
        normed = self.norm1(x)
        return self.attn(normed) + self.mlp(self.norm2(x)) + x


class BertOutput(nn.Module):
    def __init__(self, n_in: int, n: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(n_in, n), nn.LayerNorm(n)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dense(hidden) + residual)


class Bert(nn.Module):
    """One MLP in two modules, and sums inside them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(n, "value"), "output": BertOutput(n, n)})
        self.intermediate, self.output = nn.ModuleDict({"dense": nn.Linear(n, 4 * n)}), BertOutput(4 * n, n)


class UnknownNames(nn.Module):
    """Only the code tells: `b` and `d` are added, `a` and `c` feed them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(n, n) for _ in range(4))

    def forward(self, x):
        x = x + self.b(F.relu(self.a(x)))
        x += self.d(F.relu(self.c(x)))
        return x


class Geglu(nn.Module):
    """The first half of the chain is called proj, the end has only a number."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.attn = Attention(n, "to_out")
        gate = nn.Module()
        gate.proj = nn.Linear(n, 8 * n)
        self.ff = nn.Module()
        self.ff.net = nn.ModuleList([gate, nn.Dropout(), nn.Linear(4 * n, n)])


class GatedThree(nn.Module):
    """w1, w2 gate and w3 ends (DINOv2); Meta's Llama ends with w2: only shapes tell."""

    order = ("up", "up", "down")

    def __init__(self, n: int) -> None:
        super().__init__()
        self.attn = Attention(n, "wo")
        self.ff = nn.Module()
        for name, kind in zip(("w1", "w2", "w3"), self.order, strict=True):
            self.ff.add_module(name, nn.Linear(n, 3 * n) if kind == "up" else nn.Linear(3 * n, n))


class GatedTwo(GatedThree):
    order = ("up", "down", "up")


class Experts(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.attn, self.router = Attention(n), nn.Linear(n, 4)
        self.experts = nn.ModuleList(SwiGLU(n) for _ in range(4))


class StackedExperts(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.attn = Attention(n)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.empty(4, n, 6 * n))
        self.experts.down_proj = nn.Parameter(torch.empty(4, 3 * n, n))
        self.experts.down_proj_bias = nn.Parameter(torch.empty(4, n))


class ResNet(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, bias=False), nn.BatchNorm2d(n)
        self.downsample = nn.Sequential(nn.Conv2d(n, n, 1), nn.BatchNorm2d(n))

    def forward(self, x):
        identity = x
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return F.relu(out)


class PreActivation(ResNet):
    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + self.downsample(x)


class SqueezeExcite(nn.Module):
    """The gate's convolutions are registered last, and no source adds up: still bn2."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3), nn.BatchNorm2d(n)
        self.se = nn.Sequential(nn.Conv2d(n, 2, 1), nn.ReLU(), nn.Conv2d(2, n, 1))


class NormInChain(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.attn = Attention(n, "q_extra")
        self.attn.to_out = nn.Sequential(nn.Linear(n, n), nn.LayerNorm(n))

        self.attn.end = "to_out"


BRANCHES = [
    (Llama, {"self_attn.o_proj", "mlp.down_proj"}),
    (Gemma2, {"post_attention_layernorm", "post_feedforward_layernorm"}),
    (SwinV2, {"norm1", "norm2"}),
    (SwinV2InOneSum, {"norm1", "norm2"}),
    (PreNorm, {"attn.proj", "mlp.down_proj"}),
    (PostNorm, {"attn.proj", "mlp.down_proj"}),
    (Parallel, {"attn.proj", "mlp.down_proj"}),
    (Bert, {"attention.output.dense", "output.dense"}),
    (UnknownNames, {"b", "d"}),
    (Geglu, {"attn.to_out", "ff.net.2"}),
    (GatedThree, {"attn.wo", "ff.w3"}),
    (GatedTwo, {"attn.wo", "ff.w2"}),
    (Experts, {"attn.o_proj", *(f"experts.{i}.down_proj" for i in range(4))}),
    (ResNet, {"bn2"}),
    (PreActivation, {"conv2"}),
    (SqueezeExcite, {"bn2"}),
    (NormInChain, {"attn.to_out.1"}),
    (lambda n: nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n)), {"2"}),
    (lambda n: nn.TransformerEncoderLayer(n, 2, 4 * n), {"self_attn.out_proj", "linear2"}),
    (lambda n: nn.TransformerEncoderLayer(n, 2, 4 * n, norm_first=True), {"self_attn.out_proj", "linear2"}),
    (lambda n: nn.TransformerDecoderLayer(n, 2, 4 * n), {"self_attn.out_proj", "multihead_attn.out_proj", "linear2"}),
]


@pytest.mark.parametrize(("block", "expected"), BRANCHES)
def test_each_branch_ends_where_its_code_says(block, expected) -> None:
    assert set(ends(block)) == expected


def test_a_stack_of_experts_ends_in_one_of_its_tensors_and_its_bias() -> None:
    axes = {"*gate_up_proj": "stack in out", "*down_proj": "stack in out", "*down_proj_bias": "stack out"}
    assert ends(StackedExperts, axes=axes)["experts"] == ("down_proj", "down_proj_bias")


class Nameless(nn.Module):
    """No source adds up, and no name is known."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n, n), nn.Linear(n, n)


class HalfNamed(Nameless):
    """One branch has a known name; the other's end would be missed silently."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.attn = Attention(n)


class Adapter(nn.Module):
    """Here `down` is where the branch begins: its output is no feature of the stream."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.attn = Attention(n)
        self.adapter = nn.ModuleDict({"down": nn.Linear(n, 2), "up": nn.Linear(2, n)})


class SquareThree(nn.Module):
    """w1, w2, w3 all square: nothing tells which is last."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(n, n) for _ in range(3))


REFUSED = [Nameless, HalfNamed, Adapter, SquareThree, lambda n: nn.Linear(n, n)]


@pytest.mark.parametrize("block", REFUSED)
def test_a_refusal_names_the_block_and_a_line_that_works(block) -> None:
    with pytest.raises(mt.InputError) as caught:
        ends(block)
    text = str(caught.value)
    assert "'layers.0" in text and "recipe='mup'" in text and "\n" not in text
    line = re.search(r"branch_out=(\[[^]]*\])", text)
    assert line is not None
    assert ends(block, declared=eval(line[1]))


def test_declared_ends_decide_and_may_name_bare_tensors() -> None:
    assert set(ends(Nameless, ["layers.*.second"])) == {"second"}
    axes = {"*gate_up_proj": "stack in out", "*down_proj": "stack in out", "*down_proj_bias": "stack out"}
    found = ends(StackedExperts, ["*.o_proj", "*.experts.down_proj"], axes=axes)
    assert found == {"attn.o_proj": ("weight", "bias"), "experts": ("down_proj", "down_proj_bias")}


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (["layers.*.third"], "matches no module"),
        (["layers.0.second"], "names no module in block 'layers.1'"),
        (["layers.*"], "holds 2 matrices.*name the last"),
    ],
)
def test_wrong_declarations_are_refused(declared, problem) -> None:
    with pytest.raises(mt.InputError, match=problem):
        ends(Nameless, declared)


def test_a_spectrally_normalised_end_is_refused_because_it_divides_the_multiplier_away() -> None:
    class Normalised(PreNorm):
        def __init__(self, n: int) -> None:
            super().__init__(n)
            nn.utils.parametrizations.spectral_norm(self.mlp.down_proj)

    small, big = (nn.Sequential(*(Normalised(n) for _ in range(d))) for n, d in ((4, 2), (8, 4)))
    shapes, stacks = compare_with_stacks(small, big)
    with pytest.raises(mt.InputError, match=r"'0\.mlp\.down_proj' ends a residual branch and is normalised"):
        last_modules(big, shapes, stacks, ())


def test_a_list_of_bare_matrices_is_a_stack_whose_ends_must_be_named() -> None:
    class Listed(nn.Module):
        def __init__(self, n: int, depth: int) -> None:
            super().__init__()
            self.ws = nn.ParameterList(torch.randn(n, n) for _ in range(depth))

    shapes, stacks = compare_with_stacks(Listed(4, 2), Listed(8, 4))
    with pytest.raises(mt.InputError, match=r"branch_out=\['ws\.\*'\]"):
        last_modules(Listed(8, 4), shapes, stacks, ())
    assert last_modules(Listed(8, 4), shapes, stacks, ["ws.*"]) == {"ws": ("0", "1", "2", "3")}


def test_lists_whose_growth_may_be_side_by_side_are_refused() -> None:
    class Multi(nn.Module):
        def __init__(self, n: int, k: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"ffns": nn.ModuleList(SwiGLU(n) for _ in range(k))}) for _ in range(2)
            )

    def make(width: int, k: int) -> Multi:
        return Multi(width, k)

    with pytest.raises(mt.InputError, match="follow one another or stand side by side"):
        mt.plan(make, base=dict(width=4, k=2), target=dict(width=8, k=4), recipe="completep")
    assert mt.plan(make, base=dict(width=4, k=2), target=dict(width=8, k=4), recipe="mup").rows


def test_shortcuts_are_outside_the_branch() -> None:
    def model(n: int, depth: int) -> nn.Module:
        return nn.Sequential(*(ResNet(n) for _ in range(depth)))

    _, stacks = compare_with_stacks(model(4, 2), model(8, 4))
    assert in_branch("3.conv1.weight", stacks)
    assert not in_branch("3.downsample.0.weight", stacks)


# ------------------------------------------------------------------ in the plan


class Net(nn.Module):
    def __init__(self, block, n: int, depth: int) -> None:
        super().__init__()
        self.first, self.layers = nn.Linear(3, n), nn.ModuleList(block(n) for _ in range(depth))
        self.last = nn.Linear(n, 2)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


@pytest.mark.parametrize("placement", ["absorbed", "multiplier"])
@pytest.mark.parametrize("block", [Llama, Gemma2, SwinV2InOneSum, PreNorm, Parallel, UnknownNames])
def test_the_branch_multiplier_acts_once_on_every_branch(block, placement) -> None:
    """With the width fixed, the plan's model is the user's with each sum `x + f(x)` turned into `x + f(x)/L`."""
    torch.manual_seed(0)
    small, big = Net(block, 8, 2).double(), Net(block, 8, 4).double()
    plan = mt.plan(big, base=small, recipe="completep", placement=placement)
    x = torch.randn(5, 8, dtype=torch.float64)
    layer = big.layers[1].eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(0.0, 0.3)
        shapes, stacks = compare_with_stacks(small, big)
        found = [path for path in last_modules(big, shapes, stacks, ()) if path.startswith("layers.1.")]
        want = with_scaled(layer, x, 0.5, {path.removeprefix("layers.1.") for path in found})
        for n, p in layer.named_parameters():
            factor = re.findall(r"absorbs ([\d.e-]+) \(residual branch", plan[f"layers.1.{n}"].derivation)
            p.mul_(float(factor[0]) if factor else 1.0)
        plan.attach(big)
        got = layer(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def with_scaled(layer: nn.Module, x, alpha: float, names: set[str]):
    """The layer's output with the outputs of these modules multiplied by alpha."""
    handles = [layer.get_submodule(n).register_forward_hook(lambda _m, _i, out: out * alpha) for n in names]
    try:
        return layer(x)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("block", [Llama, PostNorm, UnknownNames])
def test_without_depth_growth_there_is_no_branch_multiplier(block) -> None:
    plan = mt.plan(Net(block, 8, 2), base=Net(block, 4, 2), recipe="completep")
    assert plan.depth == 1.0 and not any("residual branch" in row.derivation for row in plan.rows)


def test_names_fold_in_the_refusal() -> None:
    assert collapse("layers.0.second") == "layers.*.second"


class Unreadable(nn.Module):
    """A block whose forward gives nothing away, with an MLP that is a plain chain."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(n), nn.Sequential(nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n))

    def forward(this, x):  # what `self` is called does not matter
        for branch in (this.attn, this.mlp):
            x = x + branch(x)
        return x


def test_a_chain_ends_with_its_last_matrix_where_the_forward_cannot_be_read() -> None:
    class Net(nn.Module):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Unreadable(width) for _ in range(depth))

    plan = mt.plan(Net, base=dict(width=8, depth=2), target=dict(width=8, depth=4), recipe="completep")
    absorbed = {row.name for row in plan.rows if row.name.startswith("blocks.0") and row.ratios.lr == 0.5}
    assert absorbed == {f"blocks.0.{end}.{t}" for end in ("attn.o_proj", "mlp.2") for t in ("weight", "bias")}


def test_the_table_keeps_the_numbers_that_tell_tensors_apart() -> None:
    class Net(nn.Module):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Unreadable(width) for _ in range(depth))

    text = str(mt.plan(Net, base=dict(width=8, depth=2), target=dict(width=16, depth=4), recipe="completep"))
    assert "blocks.*.mlp.0.weight  ×4" in text and "blocks.*.mlp.2.weight  ×4" in text
