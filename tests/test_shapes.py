"""Claims about shapes: which fan of each tensor grows decides its role, whatever module stores it and in whatever order."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mutransfer as mt
from mutransfer.shapes import TensorShape, compare, compare_with_stacks


def meta(make, *args, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return make(*args, **kwargs)


def shapes_of(make, base=4, target=8, **kwargs) -> dict[str, TensorShape]:
    return {s.name: s for s in compare(meta(make, base), meta(make, target), **kwargs)}


class Bare(nn.Module):
    """A module that owns one parameter of the given shape and says nothing about it."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.empty(shape)))


# (factory of width, tensor, role, fan-in ratio, fan-out ratio) for a width that doubles
STANDARD = [
    (lambda n: nn.Linear(n, n), "weight", "hidden", 2, 2),
    (lambda n: nn.Linear(3, n), "weight", "input", 1, 2),
    (lambda n: nn.Linear(n, 10), "weight", "output", 2, 1),
    (lambda n: nn.Linear(n, 10), "bias", "scalar", 1, 1),
    (lambda n: nn.Linear(n, 3 * n), "bias", "vector", 1, 2),
    (lambda n: nn.Linear(n, 16 if n == 4 else 48), "weight", "hidden", 2, 3),
    (lambda n: nn.Embedding(11, n), "weight", "input", 1, 2),
    (lambda n: nn.Embedding(11 * n, n), "weight", "input", 1, 2),
    (lambda n: nn.EmbeddingBag(11, n), "weight", "input", 1, 2),
    (lambda n: nn.Bilinear(n, n, n), "weight", "hidden", 4, 2),
    (lambda n: nn.Bilinear(n, 5, 1), "weight", "output", 2, 1),
    (lambda n: nn.Conv1d(n, n, 3), "weight", "hidden", 2, 2),
    (lambda n: nn.Conv2d(3, n, 3), "weight", "input", 1, 2),
    (lambda n: nn.Conv3d(n, 2, 3), "weight", "output", 2, 1),
    (lambda n: nn.Conv2d(n, n, 3, groups=2), "weight", "hidden", 2, 2),
    (lambda n: nn.Conv2d(n, n, 3, groups=n), "weight", "input", 1, 2),
    (lambda n: nn.Conv2d(n, 3 * n, 3, groups=n // 2), "weight", "input", 1, 2),
    (lambda n: nn.ConvTranspose1d(n, 3, 2), "weight", "output", 2, 1),
    (lambda n: nn.ConvTranspose2d(3, n, 2), "weight", "input", 1, 2),
    (lambda n: nn.ConvTranspose2d(n, 3 * n, 2), "weight", "hidden", 2, 2),
    (lambda n: nn.ConvTranspose2d(n, n, 2, groups=2), "weight", "hidden", 2, 2),
    (lambda n: nn.ConvTranspose2d(n, n, 2, groups=n), "weight", "input", 1, 2),
    (lambda n: nn.BatchNorm2d(n), "weight", "vector", 1, 2),
    (lambda n: nn.InstanceNorm1d(n, affine=True), "bias", "vector", 1, 2),
    (lambda n: nn.GroupNorm(2, n), "weight", "vector", 1, 2),
    (lambda n: nn.LayerNorm(n), "bias", "vector", 1, 2),
    (lambda n: nn.LayerNorm([n, 2 * n]), "weight", "vector", 1, 4),
    (lambda n: nn.RMSNorm(n), "weight", "vector", 1, 2),
    (lambda n: nn.PReLU(n), "weight", "vector", 1, 2),
    (lambda n: nn.PReLU(), "weight", "scalar", 1, 1),
    (lambda n: nn.MultiheadAttention(n, 2), "in_proj_weight", "hidden", 2, 2),
    (lambda n: nn.MultiheadAttention(n, 2), "in_proj_bias", "vector", 1, 2),
    (lambda n: nn.MultiheadAttention(n, 2), "out_proj.weight", "hidden", 2, 2),
    (lambda n: nn.MultiheadAttention(n, 2, kdim=5, vdim=6), "k_proj_weight", "input", 1, 2),
    (lambda n: nn.MultiheadAttention(n, 2, kdim=5, vdim=6), "q_proj_weight", "hidden", 2, 2),
    (lambda n: nn.MultiheadAttention(n, 2, add_bias_kv=True), "bias_k", "input", 1, 2),
    (lambda n: nn.RNN(3, n), "weight_ih_l0", "input", 1, 2),
    (lambda n: nn.LSTM(n, n, num_layers=2), "weight_hh_l1", "hidden", 2, 2),
    (lambda n: nn.LSTM(n, n, bidirectional=True), "weight_ih_l0_reverse", "hidden", 2, 2),
    (lambda n: nn.LSTM(n, 2 * n, proj_size=3), "weight_hr_l0", "output", 2, 1),
    (lambda n: nn.LSTM(n, 2 * n, proj_size=n), "weight_hr_l0", "hidden", 2, 2),
    (lambda n: nn.GRU(n, n), "bias_ih_l0", "vector", 1, 2),
    (lambda n: nn.LSTMCell(n, n), "weight_ih", "hidden", 2, 2),
    (lambda n: nn.GRUCell(3, n), "weight_ih", "input", 1, 2),
    (lambda n: nn.TransformerEncoderLayer(n, 2, 2 * n), "linear2.weight", "hidden", 2, 2),
    (lambda n: nn.TransformerDecoderLayer(n, 2, 64), "linear1.weight", "output", 2, 1),
    (
        lambda n: nn.utils.parametrizations.weight_norm(nn.Linear(n, n)),
        "parametrizations.weight.original0",
        "vector",
        1,
        2,
    ),
    (
        lambda n: nn.utils.parametrizations.weight_norm(nn.Linear(3, n)),
        "parametrizations.weight.original1",
        "input",
        1,
        2,
    ),
]


@pytest.mark.parametrize(("make", "name", "role", "fan_in", "fan_out"), STANDARD)
def test_every_standard_module_tells_its_role_and_fans(make, name, role, fan_in, fan_out) -> None:
    shape = shapes_of(make)[name]
    if name.endswith("original0") or (
        name == "bias_k"
    ):  # one axis that is not 1: input or vector, the numbers are the same
        assert shape.role in ("input", "vector")
    else:
        assert shape.role == role
    assert (shape.fan_in.ratio, shape.fan_out.ratio) == (fan_in, fan_out)


def test_spectral_norm_leaves_the_weights_role() -> None:
    shape = {s.name: s for s in compare(*(nn.utils.parametrizations.spectral_norm(nn.Linear(n, n)) for n in (4, 8)))}
    assert shape["parametrizations.weight.original"].role == "hidden"


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_normalised_head_is_refused_because_it_would_divide_the_multiplier_away(norm) -> None:
    with pytest.raises(mt.InputError, match=r"parametrizations\.weight.*divided away"):
        compare(norm(nn.Linear(4, 3)), norm(nn.Linear(8, 3)))


def test_fans_count_kernel_taps_and_groups() -> None:
    grouped = shapes_of(lambda n: nn.ConvTranspose2d(n, 3 * n, 5, groups=2))["weight"]
    assert (grouped.fan_in.base, grouped.fan_in.target) == (4 / 2 * 25, 8 / 2 * 25)
    assert (grouped.fan_out.base, grouped.fan_out.target) == (12, 24)
    plain = shapes_of(lambda n: nn.Conv2d(n, 3 * n, 5, groups=2))["weight"]
    assert (plain.fan_in, plain.fan_out) == (grouped.fan_in, grouped.fan_out)


class Conv1D(nn.Module):
    """A Linear stored (in, out), as GPT-2's code names it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.empty(nf))


def test_a_linear_stored_upside_down_keeps_its_logical_fans() -> None:
    assert shapes_of(lambda n: Conv1D(7, n))["weight"].role == "output"
    assert shapes_of(lambda n: Conv1D(n, 7))["weight"].role == "input"


class GQA(nn.Module):
    def __init__(self, n: int, kv: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(n, n), nn.Linear(n, kv * 2)


def test_key_heads_that_do_not_grow_are_outputs_and_those_that_grow_are_hidden() -> None:
    assert shapes_of(lambda n: GQA(n, 1))["k_proj.weight"].role == "output"
    assert shapes_of(lambda n: GQA(n, n // 4))["k_proj.weight"].role == "hidden"


# ------------------------------------------------------------------ bare parameters

BARE = [
    ("pos_embed", lambda n: (16, n), "input"),
    ("pos_embed", lambda n: (1, 16, n), "input"),
    ("cls_token", lambda n: (1, 1, n), "input"),
    ("class_embedding", lambda n: (n,), "vector"),
    ("gamma", lambda n: (n,), "vector"),
    ("layer_scale", lambda n: (n, 1, 1), "input"),
    ("relative_position_bias_table", lambda n: (49, n // 2), "input"),
    ("register_tokens", lambda n: (1, 4, n), "input"),
    ("latents", lambda n: (5, n), "input"),
    ("temperature", lambda n: (), "scalar"),
    ("mix", lambda n: (n, n), "hidden"),
    ("whatever", lambda n: (3, 5), "scalar"),
]


@pytest.mark.parametrize(("name", "shape", "role"), BARE)
def test_bare_parameters_whose_shape_or_name_leaves_one_reading(name, shape, role) -> None:
    assert shapes_of(lambda n: Bare(name, *shape(n)))[name].role == role


AMBIGUOUS = [
    ("experts", lambda n: (4, n, 2 * n)),
    ("w", lambda n: (7, n)),
    ("w", lambda n: (n, 7)),
    ("class_head", lambda n: (10, n)),
    ("query_weight", lambda n: (16, n)),
    ("token_proj", lambda n: (16, n)),
    ("pos_proj_weight", lambda n: (16, n)),
    ("heads", lambda n: (n // 2, 3 * n // 4)),  # heads × head size: both grow alike, and it is no matrix of fan-in
    ("pos_embed", lambda n: (2 * n, n)),  # the context grows too
    ("w", lambda n: (n, n * n)),
    ("A_log", lambda n: (2 * n, 16)),
    ("scan", lambda n: (n, n, n)),
]


@pytest.mark.parametrize(("name", "shape"), AMBIGUOUS)
def test_ambiguity_names_tensor_both_shapes_and_lines_that_work(name, shape) -> None:
    def make(n):
        return Bare(name, *shape(n))

    with pytest.raises(mt.InputError) as caught:
        shapes_of(make)
    text = str(caught.value)
    assert repr(name) in text and str(shape(4)) in text and str(shape(8)) in text and "\n" not in text
    lines = re.findall(r"axes=(\{[^}]*\})", text)
    assert lines
    for line in lines:
        assert shapes_of(make, axes=eval(line))[name].axes  # the error's own words, pasted


def test_a_named_axis_decides() -> None:
    def experts(n):
        return Bare("experts", 4, n, 3 * n)

    shape = shapes_of(experts, axes={"exp*": "stack in out"})["experts"]
    assert (shape.role, shape.fan_in.base, shape.fan_out.base) == ("hidden", 4, 12)
    assert shapes_of(lambda n: Bare("w", 7, n), axes={"w": "out in"})["w"].role == "output"
    assert shapes_of(lambda n: Bare("w", 7, n), axes={"w": "in out"})["w"].role == "input"


def test_growing_numbers_of_experts_are_no_width() -> None:
    shape = shapes_of(lambda n: Bare("experts", n, 3, n), axes={"experts": "stack in out"})["experts"]
    assert (shape.role, shape.fan_in.ratio) == ("input", 1)


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        ({"w": "inn out"}, "unknown label 'inn'"),
        ({"w": "in"}, "names 1 axes, the tensor has 2"),
        ({"v": "in out"}, "matches no tensor"),
    ],
)
def test_wrong_axes_are_refused(axes, problem) -> None:
    with pytest.raises(mt.InputError, match=problem):
        shapes_of(lambda n: Bare("w", 7, n), axes=axes)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(mt.InputError, match="'readout' is not one of input, hidden"):
        shapes_of(lambda n: nn.Linear(n, 2), roles={"weight": "readout"})


# ------------------------------------------------------------------ read off the code


class Applied(nn.Module):
    """A bare (16, n) matrix; subclasses differ only in how they apply it."""

    def __init__(self, n: int, shape=None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(shape or (16, n)))


class AsLinear(Applied):
    def forward(self, x):
        return F.linear(x.view(-1, x.shape[-1]), self.w)


class AsRightFactor(Applied):
    def forward(self, x):
        return x @ self.w


class AsTransposed(Applied):
    def forward(self, x):
        return x @ self.w.T


class AsTable(Applied):
    def forward(self, x):
        return F.embedding(x, self.w)


class AsBoth(Applied):
    def forward(self, x):
        return x @ self.w + F.linear(x, self.w)


@pytest.mark.parametrize(
    ("kind", "role"), [(AsLinear, "output"), (AsTransposed, "output"), (AsRightFactor, "input"), (AsTable, "input")]
)
def test_the_forward_tells_how_a_bare_matrix_is_applied(kind, role) -> None:
    assert shapes_of(kind)["w"].role == role


def test_code_that_applies_a_matrix_in_two_ways_tells_nothing() -> None:
    with pytest.raises(mt.InputError, match="ambiguous"):
        shapes_of(AsBoth)


# ------------------------------------------------------------------ tied tensors


class Tied(nn.Module):
    def __init__(self, n: int, head_first: bool) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(n, 11, bias=False)
        self.emb = nn.Embedding(11, n)
        self.norm = nn.LayerNorm(n)
        if not head_first:
            self.head = nn.Linear(n, 11, bias=False)
        self.head.weight = self.emb.weight


@pytest.mark.parametrize("head_first", [False, True])
def test_a_tied_head_is_an_embedding_that_also_serves_as_output_in_either_order(head_first) -> None:
    shape = next(s for s in shapes_of(lambda n: Tied(n, head_first)).values() if s.aliases)
    assert (shape.role, shape.tied_output) == ("input", True)
    assert {shape.name, *shape.aliases} == {"emb.weight", "head.weight"}
    assert shape.fan_out.ratio == 2


class TiedInCode(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, n)
        self.norm = nn.LayerNorm(n)

    def forward(self, x):
        return F.linear(self.norm(self.emb(x)), self.emb.weight)


class OnlyLooks(TiedInCode):
    def forward(self, x):
        return self.emb(x).to(self.emb.weight.dtype)


def test_an_embedding_used_as_a_matrix_in_the_forward_is_a_tied_head() -> None:
    assert shapes_of(TiedInCode)["emb.weight"].tied_output
    assert not shapes_of(OnlyLooks)["emb.weight"].tied_output


def test_a_head_tied_at_one_size_only_is_refused() -> None:
    untied = Tied(8, False)
    untied.head = nn.Linear(8, 11, bias=False)
    with pytest.raises(mt.InputError, match="tied to"):
        compare(Tied(4, False), untied)


# ------------------------------------------------------------------ axes that grow with depth


class Deep(nn.Module):
    """Blocks of width n, and a bare parameter beside them whose shape depends on depth."""

    def __init__(self, n: int, depth: int, *shape: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(n, n), nn.GELU(), nn.Linear(n, n)) for _ in range(depth))
        self.lambdas = nn.Parameter(torch.empty(shape))


def deep(n: int, depth: int, shape) -> Deep:
    return meta(Deep, n, depth, *shape(n, depth))


def test_one_number_per_layer_is_a_scalar_not_a_vector() -> None:
    shapes = {s.name: s for s in compare(deep(4, 2, lambda n, d: (d,)), deep(8, 6, lambda n, d: (d,)))}
    assert (shapes["lambdas"].role, shapes["lambdas"].axes) == ("scalar", ("stack",))


@pytest.mark.parametrize(
    ("shape", "base", "target"),
    [
        (lambda n, d: (d, n, n), (4, 2), (8, 6)),
        (lambda n, d: (d, n), (4, 2), (8, 6)),
        (lambda n, d: (d, n), (4, 2), (8, 4)),  # depth and width by the same factor: no "hidden" matrix
        (lambda n, d: (d,), (4, 4), (8, 8)),  # depth equals width at both sizes
    ],
)
def test_layer_axes_beside_width_axes_must_be_named(shape, base, target) -> None:
    small, big = deep(*base, shape), deep(*target, shape)
    with pytest.raises(mt.InputError, match=r"'lambdas'.*stack"):
        compare(small, big)
    labels = " ".join(["stack", "in", "out"][: len(shape(1, 1))]) if len(shape(1, 1)) != 2 else "stack out"
    role = {"stack": "scalar", "stack out": "vector", "stack in out": "hidden"}[labels]
    found = {s.name: s for s in compare(small, big, axes={"lambdas": labels})}
    assert found["lambdas"].role == role


# ------------------------------------------------------------------ the rest of a model


def test_buffers_do_not_count_and_frozen_parameters_do() -> None:
    shapes = shapes_of(lambda n: nn.BatchNorm1d(n).requires_grad_(False))
    assert set(shapes) == {"weight", "bias"}


def test_lazy_modules_are_refused_with_what_to_do() -> None:
    with pytest.raises(mt.InputError, match=r"'0\.weight' has no shape yet \(LazyLinear\): run one forward"):
        compare(nn.Sequential(nn.LazyLinear(4)), nn.Sequential(nn.LazyLinear(8)))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(mt.InputError, match="no parameters"):
        compare(nn.ReLU(), nn.ReLU())


def test_parameter_containers_with_digits_in_their_names() -> None:
    class Model(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.gains = nn.ParameterList(torch.ones(n) for _ in range(3))
            self.tables = nn.ParameterDict({"0": torch.ones(n), "10": torch.ones(2)})

    roles = {name: s.role for name, s in shapes_of(Model).items()}
    assert roles == {f"gains.{i}": "vector" for i in range(3)} | {"tables.0": "vector", "tables.10": "scalar"}


def test_gains_listed_per_layer_are_no_blocks_of_their_own() -> None:
    class Model(nn.Module):
        def __init__(self, n: int, depth: int) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(n) for _ in range(depth + 1))
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n)) for _ in range(depth)
            )

    _, stacks = compare_with_stacks(Model(4, 2), Model(4, 4))
    assert [(s.path, s.base, s.target) for s in stacks] == [("blocks", 2, 4)]


def test_one_block_applied_many_times_counts_as_depth() -> None:
    class Shared(nn.Module):
        def __init__(self, n: int, depth: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n))] * depth)

    for base in (1, 2):
        shapes, stacks = compare_with_stacks(Shared(4, base), Shared(8, 4))
        assert [(s.path, s.base, s.target) for s in stacks] == [("blocks", base, 4)]
        assert {s.role for s in shapes} == {"hidden", "vector"}


def test_names_are_the_users_own_under_torch_compile() -> None:
    def compiled(n: int) -> nn.Module:
        wrapper = nn.Module()
        wrapper.add_module("_orig_mod", nn.Linear(n, 4))  # what torch.compile returns
        return wrapper

    assert [s.name for s in compare(compiled(4), compiled(8))] == ["weight", "bias"]


def test_identical_models_have_no_growth() -> None:
    assert all(s.role == "scalar" for s in compare(nn.Linear(3, 3), nn.Linear(3, 3)))


def test_a_factory_with_one_number_per_layer_plans() -> None:
    def make(width: int, depth: int) -> nn.Module:
        return Deep(width, depth, depth)

    plan = mt.plan(make, base=dict(width=4, depth=2), target=dict(width=8, depth=6), recipe="completep")
    assert (plan["lambdas"].role, plan.depth) == ("scalar", 3.0)
