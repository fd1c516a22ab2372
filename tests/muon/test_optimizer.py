"""Our Muon is torch's where both apply, and treats every stored layout as the plain matrices it holds."""

import copy
import io
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.optim import lr_scheduler

from mutransfer.errors import InputError
from mutransfer.muon import Muon
from mutransfer.muon import optimizer as module
from mutransfer.muon.optimizer import factor
from mutransfer.train.ranks import leave

SCALES = ["1", "√max(1,out/in)", "√(out/in)", "0.2√max(in,out)"]


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def train(optimizer: torch.optim.Optimizer, steps: int = 4, first: int = 0, absent: int | None = None) -> None:
    """Steps on gradients that depend on the step and the parameter's place alone; `absent` has none on odd steps."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        for number, p in enumerate(params):
            generator = torch.Generator().manual_seed(1000 * step + number)
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            if number == absent and step % 2:
                p.grad = None
        optimizer.step()


def step_of(p: Tensor, gradient: Tensor, **settings: Any) -> Tensor:
    """The change of one step without decay and momentum, in float64."""
    parameter = nn.Parameter(p.double().clone())
    parameter.grad = gradient.double()
    Muon([parameter], lr=1.0, weight_decay=0.0, momentum=0.0, **settings).step()
    return parameter.detach() - p.double()


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.0, "momentum": 0.5, "ns_steps": 3, "eps": 1e-2}])
def test_it_is_torchs_muon(adjust: str | None, nesterov: bool, settings: dict[str, Any]) -> None:
    """Bit for bit in bfloat16 off the Gram matrix, to bfloat16's rounding on it and in float32 and float64."""
    square, oblong = [(40, 40), (40, 40), (48, 40), (40, 48)], [(64, 16), (16, 64), (64, 16), (1, 12)]
    scale = "0.2√max(in,out)" if adjust == "match_rms_adamw" else "√max(1,out/in)"
    start = parameters(*square, *oblong)
    theirs = copy.deepcopy(start)
    train(torch.optim.Muon(theirs, lr=0.02, adjust_lr_fn=adjust, nesterov=nesterov, **settings))
    for dtype in ("bfloat16", "float32", "float64"):
        ours = copy.deepcopy(start)
        train(Muon(ours, lr=0.02, scale=scale, nesterov=nesterov, dtype=dtype, **settings))
        for number, (a, b, before) in enumerate(zip(ours, theirs, start, strict=True)):
            if dtype == "bfloat16" and number < len(square):
                assert torch.equal(a, b)
            assert (a - b).norm() < 0.04 * (b - before).norm()


@pytest.mark.parametrize("scale", SCALES)
def test_scale_is_of_each_matrix_by_its_meaning_and_not_by_how_it_is_stored(scale: str) -> None:
    p, gradient = (torch.randn(12, 30, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    plain = step_of(p, gradient, scale=scale)
    torch.testing.assert_close(step_of(p.T, gradient.T, scale=scale, axes=("in", "out")).T, plain)
    alone = step_of(p, gradient, scale="UVᵀ")
    torch.testing.assert_close(plain, alone * factor(scale, 30, 12))
    assert factor("0.2√max(in,out)", 30, 12) == pytest.approx(0.2 * 30**0.5)
    assert factor("√(out/in)", 30, 12) == pytest.approx((12 / 30) ** 0.5)
    assert factor("√max(1,out/in)", 12, 48) == 2.0 and factor("√max(1,out/in)", 48, 12) == 1.0


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("stored", ["out", "in"])
def test_fused_matrices_are_their_parts_alone(scale: str, stored: str) -> None:
    """Query, key and value of grouped-query attention in one tensor, stored either way round."""
    parts, fan_in = (16, 4, 4), 12
    p, gradient = (torch.randn(24, fan_in, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    alone = [step_of(a, b, scale=scale) for a, b in zip(p.split(parts), gradient.split(parts), strict=True)]
    if stored == "out":
        fused = step_of(p, gradient, scale=scale, parts=parts)
    else:
        fused = step_of(p.T.contiguous(), gradient.T.contiguous(), scale=scale, axes=("in", "out"), parts=parts).T
    torch.testing.assert_close(fused, torch.cat(alone))
    assert not torch.allclose(fused, step_of(p, gradient, scale=scale), atol=1e-2)


@pytest.mark.parametrize("axes", [("stack", "out", "in"), ("stack", "in", "out"), ("out", "stack", "in")])
@pytest.mark.parametrize("parts", [(), (5, 7)])
def test_experts_are_their_matrices_alone(axes: tuple[str, ...], parts: tuple[int, ...]) -> None:
    sizes = {"stack": 3, "out": 12, "in": 20}
    shape = [sizes[label] for label in axes]
    p, gradient = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    found = step_of(p, gradient, axes=axes, parts=parts, scale="√(out/in)")
    order = [axes.index(label) for label in ("stack", "out", "in")]
    for one, a, b in zip(*(t.permute(order) for t in (found, p, gradient)), strict=True):
        torch.testing.assert_close(one, step_of(a, b, parts=parts, scale="√(out/in)"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_out_by_in_times_taps(scale: str, memory: torch.memory_format) -> None:
    p, gradient = (torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    flat = step_of(p.flatten(1), gradient.flatten(1), scale=scale).view(p.shape)
    axes = ("out", "in", "kernel", "kernel")
    torch.testing.assert_close(step_of(p.to(memory_format=memory), gradient, axes=axes, scale=scale), flat)
    transposed = step_of(
        p.transpose(0, 1), gradient.transpose(0, 1), axes=("in", "out", "kernel", "kernel"), scale=scale
    )
    torch.testing.assert_close(transposed.transpose(0, 1), flat)
    one = step_of(p[..., 0], gradient[..., 0], axes=("out", "in", "kernel"), scale=scale)
    torch.testing.assert_close(one.flatten(1), step_of(p[..., 0].flatten(1), gradient[..., 0].flatten(1), scale=scale))


SHAPES = [(16, 16), (16, 48), (48, 16), (16, 16), (6, 16, 16), (8, 4, 3, 3)]


def mixed(params: list[nn.Parameter], **settings: Any) -> Muon:
    """Groups with settings of their own; some share a shape across groups."""
    return Muon(
        [
            {"params": params[:3]},
            {"params": params[3:4], "lr": 0.05, "scale": "1", "weight_decay": 0.3},
            {"params": params[4:5], "axes": ("stack", "in", "out"), "parts": (4, 12)},
            {"params": params[5:], "axes": ("out", "in", "kernel", "kernel"), "coefficients": "polar-express"},
        ],
        lr=0.02, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("absent", [None, 0])
def test_a_run_resumes_bit_for_bit(dtype: str, absent: int | None) -> None:
    """Through a saved state dict, with a parameter that has no gradient at some steps."""
    whole = parameters(*SHAPES)
    train(mixed(whole, dtype=dtype), 6, absent=absent)
    first = parameters(*SHAPES)
    optimizer = mixed(first, dtype=dtype)
    train(optimizer, 3, absent=absent)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), first], file)
    file.seek(0)
    state, second = torch.load(file, weights_only=True)
    resumed = mixed(second)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["dtype"] == dtype
    train(resumed, 3, first=3, absent=absent)
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


@pytest.mark.parametrize("entries", [1, 600, 2**30])
def test_numbers_do_not_depend_on_how_matrices_are_batched(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, a few at a time, all at once, and each parameter under an optimizer of its own: to rounding."""
    together, apart = parameters(*SHAPES, seed=1), parameters(*SHAPES, seed=1)
    monkeypatch.setattr(module, "_BATCH", {"cpu": entries})
    train(mixed(together, dtype="float32"), 3)
    monkeypatch.undo()
    single = mixed(apart, dtype="float32")
    for group in single.param_groups:
        for p in group["params"]:
            number = next(i for i, q in enumerate(apart) if q is p)
            alone = Muon([{**group, "params": [p]}])
            for step in range(3):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * step + number))
                alone.step()
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    params = parameters((8, 8), (8, 8))
    before = params[0].detach().clone()
    optimizer = Muon(params)
    params[1].grad = torch.ones(8, 8)
    optimizer.step()
    assert torch.equal(params[0], before) and params[0] not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()


def test_closures_schedulers_copies_and_pickles() -> None:
    params = parameters((8, 8), (4, 8))
    optimizer = Muon(params, lr=0.1, weight_decay=0.0, scale="1")
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(((p - 1) ** 2).sum() for p in params)
        assert isinstance(loss, Tensor)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(2)]
    assert losses[1] < losses[0]
    sizes = []
    for _ in range(2):
        before = params[0].detach().clone()
        optimizer.step(closure)
        sizes.append(float(torch.linalg.matrix_norm(params[0].detach() - before, 2)))
        scheduler.step()
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert again.param_groups[0]["scale"] == "1" and len(again.state) == 2
        again.step()


def test_a_learning_rate_may_be_a_tensor() -> None:
    one, two = parameters((8, 8)), parameters((8, 8))
    train(Muon(one, lr=torch.tensor(0.25)))  # pyright: ignore[reportArgumentType]
    train(Muon(two, lr=0.25))
    assert torch.equal(one[0], two[0])


@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_it_takes_over_from_torchs_muon(adjust: str | None) -> None:
    """Its state dict is read: same buffers, same coefficients, the scaling by its name."""
    theirs = parameters((24, 24), (24, 20))
    first = torch.optim.Muon(theirs, lr=0.02, adjust_lr_fn=adjust, ns_coefficients=(3.0, -3.2, 1.2))
    train(first, 3)
    ours = copy.deepcopy(theirs)
    second = Muon(ours, scale="1", dtype="bfloat16")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["dtype"] == "bfloat16" and second.param_groups[0]["lr"] == 0.02
    train(first, 2, first=3)
    train(second, 2, first=3)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_bfloat16_and_float64_parameters() -> None:
    low = [nn.Parameter(p.detach().bfloat16()) for p in parameters((16, 16))]
    theirs = copy.deepcopy(low)
    train(Muon(low, dtype="bfloat16"))
    train(torch.optim.Muon(theirs))
    assert torch.equal(low[0], theirs[0]) and low[0].dtype == torch.bfloat16
    high = [nn.Parameter(p.detach().double()) for p in parameters((16, 40))]
    optimizer = Muon(high)
    train(optimizer)
    assert optimizer.state[high[0]]["momentum_buffer"].dtype == torch.float64


@pytest.mark.parametrize(
    ("p", "settings", "message"),
    [
        (torch.ones(3), {}, r"parameter 0 of the group of shape \(3,\) is 1-D, no matrix"),
        (torch.ones(()), {}, r"of shape \(\) is 0-D"),
        (torch.ones(0, 3), {}, r"of shape \(0, 3\) is empty"),
        (torch.ones(3, 3, dtype=torch.complex64), {}, "is torch.complex64: Muon runs real matrices"),
        (torch.ones(3, 3).to_sparse(), {}, "is sparse"),
        (torch.ones(2, 3, 4), {}, r"of shape \(2, 3, 4\) is not one matrix: say what its axes are, such as axes="),
        (torch.ones(2, 3), {"axes": ("out", "lookup")}, "write a tuple of 'out', 'in', 'stack', 'kernel'"),
        (torch.ones(2, 3), {"axes": "out in"}, "axes='out in': write a tuple"),
        (torch.ones(2, 3), {"axes": ("out", "in", "in")}, r"names 3 axes; .*shape \(2, 3\)"),
        (torch.ones(2, 3), {"axes": ("out", "out")}, "needs an 'out' and an 'in' axis"),
        (torch.ones(6, 3), {"parts": (2, 2)}, r"parts=\(2, 2\) add up to 4; .* has 6 along 'out'"),
        (torch.ones(6, 3), {"parts": (6.0,)}, "write the sizes along 'out'"),
        (torch.ones(6, 3), {"parts": 2}, "write the sizes along 'out'"),
        (torch.ones(2, 3, 4), {"axes": ("out", "out", "in"), "parts": (2, 4)}, "only one axis may be 'out'"),
        (torch.ones(3, 3), {"scale": "spectral"}, "scale='spectral': write a formula, one of 'UVᵀ'"),
        (torch.ones(3, 3), {"scale": None}, "scale=None"),
        (torch.ones(3, 3), {"lr": -1.0}, "lr=-1.0: write a number, 0 or more"),
        (torch.ones(3, 3), {"lr": "1"}, "lr='1'"),
        (torch.ones(3, 3), {"momentum": 1.0}, "momentum=1.0: write a number, 0 or more and below 1"),
        (torch.ones(3, 3), {"weight_decay": float("nan")}, "weight_decay=nan"),
        (torch.ones(3, 3), {"nesterov": 1}, "nesterov=1"),
        (torch.ones(3, 3), {"eps": -1e-7}, "eps=-1e-07"),
        (torch.ones(3, 3), {"ns_steps": 0}, "ns_steps=0"),
        (torch.ones(3, 3), {"coefficients": "newton"}, "coefficients='newton'"),
        (torch.ones(3, 3), {"dtype": "half"}, "dtype='half'"),
    ],
)
def test_what_cannot_be_run_is_refused_with_one_clear_line(p: Tensor, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Muon([nn.Parameter(p)], **settings)
    assert "\n" not in str(caught.value)


def test_a_refused_group_leaves_the_optimizer_as_it_was_and_names_are_used() -> None:
    optimizer = Muon(parameters((4, 4)))
    with pytest.raises(InputError, match=r"blocks\.0\.bias of shape \(4,\) is 1-D"):
        optimizer.add_param_group({"params": parameters((4,)), "names": ["blocks.0.bias"]})
    assert len(optimizer.param_groups) == 1
    train(optimizer, 1)


def test_a_sparse_gradient_is_refused_before_anything_is_written() -> None:
    params = parameters((4, 4), (5, 4))
    before = copy.deepcopy(params)
    params[0].grad = torch.ones(4, 4)
    params[1].grad = torch.ones(5, 4).to_sparse()
    with pytest.raises(InputError, match=r"shape \(5, 4\) has a sparse gradient"):
        Muon(params).step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


# ------------------------------------------------------------------ sharded, in real processes


class Net(nn.Module):
    """Fused, stacked and plain matrices whose sizes two processes cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fused = nn.Parameter(torch.randn(15, 8, generator=generator))
        self.experts = nn.Parameter(torch.randn(3, 8, 6, generator=generator))
        self.plain = nn.Parameter(torch.randn(8, 32, generator=generator))
        self.row = nn.Parameter(torch.randn(1, 8, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        wide = x @ self.fused.T
        return (
            (wide**2).mean() + ((x @ self.experts) ** 3).mean() + (x @ self.plain).abs().mean() + (x * self.row).mean()
        )


def muon(net: Net, **settings: Any) -> Muon:
    return Muon(
        [
            {"params": [net.fused], "parts": (9, 3, 3), "scale": "√(out/in)"},
            {"params": [net.experts], "axes": ("stack", "in", "out")},
            {"params": [net.plain, net.row], "weight_decay": 0.5},
        ],
        lr=0.1, dtype="float32", **settings,
    )  # fmt: skip


def run(net: Net, optimizer: Muon, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 8, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()


def sharded_worker(rank: int, port: int, folder: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        net = Net()
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
        optimizer = muon(net)
        run(net, optimizer)
        state = optimizer.state_dict()
        resumed = muon(net)
        resumed.load_state_dict(state)
        run(net, resumed, 1)
        found = {name: p.full_tensor() for name, p in net.named_parameters()}  # pyright: ignore[reportCallIssue]
        if rank == 0:
            torch.save(found, Path(folder) / "found.pt")
        leave(0)
    finally:
        dist.destroy_process_group()


def test_sharded_parameters_take_the_steps_of_the_whole_ones(tmp_path: Path) -> None:
    """FSDP2 on two real processes against one process on its own, shards uneven and empty."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(sharded_worker, args=(port, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    alone = Net()
    optimizer = muon(alone)
    run(alone, optimizer)
    run(alone, optimizer, 1)
    for name, p in alone.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), rtol=0, atol=1e-5, msg=name)
