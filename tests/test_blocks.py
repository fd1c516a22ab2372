"""Claims about depth: every target tensor finds its small brother by pattern, and where none exists that is an error."""

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.blocks import Stack, block_of, collapse, match
from mutransfer.branches import depth_ratio, depth_stacks
from mutransfer.shapes import compare_with_stacks, parameters_of


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: p.shape for name, p in parameters_of(model).items()}


def mlp(width: int, depth: int, d_in: int = 10, d_out: int = 3) -> nn.Sequential:
    """A flat chain whose numbering changes with depth."""
    layers: list[nn.Module] = [nn.Linear(d_in, width)]
    for _ in range(depth - 2):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, d_out))


@pytest.mark.parametrize(("base", "target"), [(3, 3), (3, 4), (3, 8), (4, 9), (5, 3)])
@pytest.mark.parametrize("d_in", [10, 16, 32])  # 16: the input is as wide as the base; 32: as the target
def test_a_flat_chain_matches_first_to_first_and_head_to_head(base, target, d_in) -> None:
    small, big = mlp(16, base, d_in), mlp(32, target, d_in)
    mapping, _ = match(shapes(small), shapes(big))
    heads, inputs = (f"{len(big) - 1}.weight", f"{len(small) - 1}.weight"), ("0.weight", "0.weight")
    assert mapping[heads[0]] == heads[1] and mapping[inputs[0]] == inputs[1]
    roles = [s.role for s in compare_with_stacks(small, big)[0] if s.name.endswith("weight")]
    assert roles == ["input"] + ["hidden"] * (target - 2) + ["output"]


def test_a_hidden_layer_without_a_hidden_brother_is_refused() -> None:
    with pytest.raises(mt.InputError, match=r"'2\.weight' \(32, 32\) has no counterpart of its kind.*deeper base"):
        match(shapes(mlp(16, 2)), shapes(mlp(32, 3)))


class Block(nn.Module):
    def __init__(self, n: int, moe: int = 0, shortcut: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n)
        self.fc1, self.fc2 = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)
        if moe:
            self.experts = nn.ModuleList(nn.Linear(n, n) for _ in range(moe))
        if shortcut:
            self.shortcut = nn.Linear(n, n)

    def forward(self, x):
        return x + self.fc2(self.fc1(self.norm(x)))


def stack(n: int, kinds: str) -> nn.Module:
    """One block per letter: d(ense), m(oE with 4 experts), M(oE with 8)."""
    model = nn.Module()
    model.blocks = nn.ModuleList(Block(n, {"d": 0, "m": 4, "M": 8}[kind]) for kind in kinds)
    return model


@pytest.mark.parametrize(("base", "target"), [("dd", "dddd"), ("dmdm", "dmdmdmdm"), ("dm", "dmmm"), ("dm", "dMdMdM")])
def test_blocks_match_blocks_of_their_own_kind(base, target) -> None:
    small, big = stack(4, base), stack(8, target)
    mapping, stacks = match(shapes(small), shapes(big))
    for ours, theirs in mapping.items():
        assert target[int(ours.split(".")[1])].lower() == base[int(theirs.split(".")[1])].lower()
    assert (stacks[0].path, stacks[0].base, stacks[0].target) == ("blocks", len(base), len(target))
    first, last = mapping["blocks.0.fc1.weight"], mapping[f"blocks.{len(target) - 1}.fc1.weight"]
    assert (first, last) == ("blocks.0.fc1.weight", f"blocks.{len(base) - 1}.fc1.weight")


def test_more_experts_are_matched_and_are_not_depth() -> None:
    shapes_, stacks = compare_with_stacks(stack(4, "mm"), stack(8, "MM"))
    assert depth_stacks(stacks) == [] and depth_ratio(depth_stacks(stacks)) == 1.0
    assert {s.role for s in shapes_} == {"hidden", "vector"}


def test_depth_and_experts_growing_together_give_the_depth_ratio_alone() -> None:
    _, stacks = compare_with_stacks(stack(4, "mm"), stack(8, "MMMMMM"))
    serial = depth_stacks(stacks)
    assert [s.path for s in serial] == ["blocks"] and depth_ratio(serial) == 3.0


class Conv(nn.Module):
    """A ResNet's basic block."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, bias=False), nn.BatchNorm2d(after)
        if before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))


def resnet(n: int, depths: list[int]) -> nn.Module:
    model, before = nn.Module(), n
    model.stem = nn.Conv2d(3, n, 3)
    for stage, depth in enumerate(depths):
        after = n * 2**stage
        blocks = [Conv(before if i == 0 else after, after) for i in range(depth)]
        model.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        before = after
    model.fc = nn.Linear(before, 10)
    return model


def test_resnet_stages_find_blocks_with_and_without_a_shortcut() -> None:
    small, big = resnet(4, [2, 2, 2, 2]), resnet(8, [3, 4, 6, 3])
    found, stacks = compare_with_stacks(small, big)
    by_name = {s.name: s for s in found}
    assert depth_ratio(depth_stacks(stacks)) == 16 / 8
    for name, s in by_name.items():
        assert ("downsample" in s.base_name) == ("downsample" in name)
    first = by_name["layer3.0.conv1.weight"]
    assert (first.base_shape[1], first.target_shape[1]) == (8, 16)  # reads the stage before it
    assert by_name["layer3.5.conv1.weight"].base_name == "layer3.1.conv1.weight"
    assert {s.role for s in found if s.name.endswith("conv1.weight")} == {"hidden"}


def test_a_stage_that_keeps_its_length_is_on_the_same_residual_stream() -> None:
    small, big = resnet(4, [2, 2, 2]), resnet(8, [2, 4, 6])
    found, stacks = compare_with_stacks(small, big)
    assert depth_ratio(depth_stacks(stacks)) == 12 / 6
    assert {s.block for s in found if s.name.startswith("layer1.0.")} == {"layer1.0"}
    assert {s.block for s in found if s.name.startswith(("stem", "fc"))} == {None}


def test_a_decoder_whose_length_stays_is_not_a_part_of_a_growing_encoder() -> None:
    def model(n: int, encoder: int, decoder: int) -> nn.Module:
        both = nn.Module()
        both.encoder = nn.ModuleList(Block(n) for _ in range(encoder))
        both.decoder = nn.ModuleList(nn.TransformerDecoderLayer(n, 2, n) for _ in range(decoder))
        return both

    _, stacks = compare_with_stacks(model(4, 2, 2), model(8, 4, 2))
    assert depth_ratio(depth_stacks(stacks)) == 2.0
    _, stacks = compare_with_stacks(model(4, 2, 3), model(8, 4, 6))
    assert sorted((s.path, s.base, s.target) for s in stacks) == [("decoder", 3, 6), ("encoder", 2, 4)]


def test_nested_stages_grow_as_one_stream() -> None:
    def model(n: int, depths: list[int]) -> nn.Module:
        holder = nn.Module()
        holder.stages = nn.ModuleList(
            nn.ModuleDict({"blocks": nn.ModuleList(Block(n) for _ in range(d))}) for d in depths
        )
        return holder

    _, stacks = compare_with_stacks(model(4, [1, 1]), model(8, [2, 4]))
    assert depth_ratio(depth_stacks(stacks)) == 3.0


def test_numbering_need_not_be_contiguous_or_start_at_zero() -> None:
    def model(n: int, numbers: list[int]) -> nn.Module:
        holder = nn.Module()
        holder.h = nn.ModuleDict({str(i): Block(n) for i in numbers})
        return holder

    mapping, stacks = match(shapes(model(4, [3, 7])), shapes(model(8, [1, 5, 9, 40])))
    assert mapping["h.1.fc1.weight"] == "h.3.fc1.weight" and mapping["h.40.fc1.weight"] == "h.7.fc1.weight"
    assert (stacks[0].base, stacks[0].target) == (2, 4)


def test_a_model_that_is_itself_a_stack_has_blocks() -> None:
    small, big = nn.Sequential(*(Block(4) for _ in range(2))), nn.Sequential(*(Block(8) for _ in range(3)))
    found, stacks = compare_with_stacks(small, big)
    assert stacks == [Stack("", 2, 3)]
    assert {s.block for s in found} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("base", "target", "problem"),
    [
        ({"a.w": (2,)}, {"a.w": (4,), "b.w": (4,)}, "'b.w' of the target has no counterpart"),
        ({"a.w": (2,), "b.w": (2,)}, {"a.w": (4,)}, "'b.w' of the base model has no counterpart"),
        ({"a.w": (2, 2)}, {"a.w": (4,)}, r"has shape \(4,\) in the target but \(2, 2\)"),
        ({"block0.w": (2,)}, {"block0.w": (4,), "block1.w": (4,)}, "blocks must be numbered children"),
        ({"h.0.w": (2,)}, {"h.0.w": (4,), "h.1.v": (4,)}, "'h.1.v' of the target has no counterpart"),
    ],
)
def test_a_tensor_without_a_counterpart_is_an_error(base, target, problem) -> None:
    with pytest.raises(mt.InputError, match=problem):
        match(base, target)


def test_a_shallower_target_is_matched_too() -> None:
    mapping, stacks = match(shapes(stack(8, "dddd")), shapes(stack(4, "dd")))
    assert mapping["blocks.1.fc1.weight"] == "blocks.3.fc1.weight"
    assert (stacks[0].base, stacks[0].target) == (4, 2)


def test_names_fold_and_blocks_are_found() -> None:
    assert collapse("h.3.mlp.0.w") == "h.*.mlp.*.w" and collapse("3.w") == "*.w" and collapse("fc1.w") == "fc1.w"
    assert block_of("h.3.mlp.0.w", [Stack("h", 2, 4)]) == "h.3"
    assert block_of("head.0.w", [Stack("h", 2, 4)]) is None
    assert block_of("stages.1.blocks.2.w", [Stack("stages.0.blocks", 1, 2)]) == "stages.1.blocks.2"


def test_every_depth_pair_is_monotone_and_keeps_both_ends() -> None:
    for base in range(2, 7):
        for target in range(base, 13):
            mapping, _ = match({f"h.{i}.w": (2,) for i in range(base)}, {f"h.{i}.w": (4,) for i in range(target)})
            order = [int(mapping[f"h.{i}.w"].split(".")[1]) for i in range(target)]
            assert order[0] == 0 and order[-1] == base - 1 and order == sorted(order)
            assert set(order) == set(range(base))


def test_the_third_size_of_a_factory_sees_growth_by_rounding() -> None:
    def make(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(3, width), nn.Linear(width, max(8, width // 4)), nn.Linear(max(8, width // 4), 2)
        )

    with pytest.raises(mt.InputError, match="grows on one step only"):
        mt.plan(make, base=dict(width=16), target=dict(width=32))
    assert torch.get_default_device().type == "cpu"
