"""ResNet: torchvision's names, shapes and counts; widths; refusals."""

import pickle

import pytest
import torch
import torch.nn.functional as F

from mutransfer.errors import InputError
from mutransfer.models import ResNet, ResNetConfig, resnet_factory


def torchvision_resnet18(classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's resnet18 in the order of its named_parameters, written down by hand."""

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, before, 3, 3), **norm(f"{name}.bn1", width)}
            shapes |= {f"{name}.conv2.weight": (width, width, 3, 3), **norm(f"{name}.bn2", width)}
            if before != width:
                shapes |= {f"{name}.downsample.0.weight": (width, before, 1, 1), **norm(f"{name}.downsample.1", width)}
            before = width
    return shapes | {"fc.weight": (classes, 512), "fc.bias": (classes,)}


def build(**fields) -> ResNet:
    torch.manual_seed(0)
    return ResNet(ResNetConfig(**fields))


def test_resnet18_has_torchvisions_names_and_shapes():
    with torch.device("meta"):
        model = build(classes=1000, stem="imagenet")
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == torchvision_resnet18()
    assert list(dict(model.named_parameters())) == list(torchvision_resnet18())


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "count"),
    [((2, 2, 2, 2), False, 11_689_512), ((3, 4, 6, 3), False, 21_797_672), ((3, 4, 6, 3), True, 25_557_032)],
    ids=["resnet18", "resnet34", "resnet50"],
)
def test_published_parameter_counts(blocks, bottleneck, count):
    with torch.device("meta"):
        model = build(classes=1000, stem="imagenet", blocks=blocks, bottleneck=bottleneck)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_every_stage_grows_with_the_width_and_every_tensor_trains(width, bottleneck):
    model = build(width=width, bottleneck=bottleneck, channels=1, blocks=(1, 2))
    assert model.conv1.weight.shape == (width, 1, 3, 3)
    assert model.fc.weight.shape == (10, 2 * width * (4 if bottleneck else 1))
    y = model(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert y.shape == (8, 10)
    F.cross_entropy(y, torch.arange(8)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


@pytest.mark.parametrize(("stem", "size"), [("cifar", 32), ("imagenet", 8)])
def test_stems_differ_by_a_factor_of_four_in_resolution(stem, size):
    model, seen = build(width=2, stem=stem).eval(), []
    model.layer1.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [(1, 2, size, size)]


def test_convolutions_follow_hes_law_over_the_fan_out():
    model = build(width=32)
    for stage in range(1, 5):
        conv = model.get_submodule(f"layer{stage}.1.conv2")
        assert abs(conv.weight.std() / (2 / (9 * conv.out_channels)) ** 0.5 - 1) < 0.05


def test_evaluation_uses_the_running_statistics():
    model, x = build(width=4), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model(x)
    model.eval()
    torch.testing.assert_close(model(x)[:2], model(x[:2]))


def test_factory_can_be_pickled():
    model = pickle.loads(pickle.dumps(resnet_factory(classes=100)))(width=4, blocks=[1, 1])
    assert model.config == ResNetConfig(classes=100, width=4, blocks=(1, 1))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0}, "width=0"),
        ({"width": 0.125}, r"width=0\.125"),
        ({"classes": -1}, "classes=-1"),
        ({"channels": 0}, "channels=0"),
        ({"blocks": ()}, r"blocks=\(\)"),
        ({"blocks": (2, 0)}, r"blocks=\(2, 0\)"),
        ({"blocks": 18}, "blocks=18"),
        ({"stem": "digits"}, "stem='digits'"),
        ({"bottleneck": "no"}, "bottleneck='no'"),
    ],
    ids=str,
)
def test_wrong_config_is_one_clear_line(fields, words):
    with pytest.raises(InputError, match=words):
        ResNetConfig(**fields)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8)])
def test_wrong_image_shape_is_one_clear_line(shape):
    with pytest.raises(InputError, match=r"batch, 3, height, width"):
        build(width=2)(torch.zeros(shape))
