"""Newton–Schulz in batches: the polynomial of the singular values that it claims, errors no larger than torch's, no NaN."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz as torch_orthogonal  # pyright: ignore[reportMissingImports]

from mutransfer.errors import InputError
from mutransfer.muon import orthogonalize
from mutransfer.muon.coefficients import JORDAN, schedule
from mutransfer.muon.polar import _segments, compute_dtype, multiplies_bfloat16

SHAPES = [(8, 8), (24, 24), (24, 32), (16, 64), (64, 16), (1, 7), (7, 1), (1, 1), (3, 200), (130, 48)]


def with_spectrum(rows: int, columns: int, s: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these singular values and random singular vectors, float64."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(n, len(s), generator=generator, dtype=torch.float64))[0] for n in (rows, columns)
    )
    return (u * s) @ v.T


def exact(matrix: Tensor, steps: tuple[tuple[float, float, float], ...], eps: float = 1e-7) -> Tensor:
    """The same polynomial applied to the singular values of an SVD."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm().clamp(min=eps)
    for a, b, c in steps:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vh


def polar_factor(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "coefficients", ["jordan", "polar-express", (2.0, -1.5, 0.5), [[1.5, -0.5, 0.0], [2.0, -1.5, 0.5]]]
)
@pytest.mark.parametrize("ns_steps", [1, 5, 9])
def test_it_is_the_polynomial_of_the_singular_values(shape: tuple[int, int], coefficients, ns_steps: int) -> None:
    """Direct and on the Gram matrix, wide and tall, in every batch axis."""
    matrices = torch.randn(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices, coefficients=coefficients, ns_steps=ns_steps)
    steps = schedule(coefficients, ns_steps)
    assert found.shape == matrices.shape and found.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(found[i, j], exact(matrices[i, j], steps), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        orthogonalize(matrices.float(), coefficients=coefficients, ns_steps=ns_steps, dtype="float32").double(),
        found, rtol=0, atol=2e-4,
    )  # fmt: skip


@pytest.mark.parametrize("decades", [0, 2, 4, 8])
@pytest.mark.parametrize("shape", [(96, 96), (64, 256), (256, 64), (200, 300)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_errors_are_no_larger_than_torchs(shape: tuple[int, int], decades: int, dtype: str) -> None:
    """‖O − UVᵀ‖_F against the SVD in float64, from well-conditioned to hopeless; 2 % are the luck of rounding."""
    s = torch.logspace(0, -decades, min(shape), dtype=torch.float64)
    ours, theirs = 0.0, 0.0
    for seed in range(4):
        matrix = with_spectrum(*shape, s, seed).float()
        target = polar_factor(with_spectrum(*shape, torch.ones_like(s), seed))  # the same singular vectors
        theirs += float((torch_orthogonal(matrix, JORDAN, 5, 1e-7).double() - target).square().sum())
        ours += float((orthogonalize(matrix, dtype=dtype).double() - target).square().sum())
    assert ours**0.5 <= 1.02 * theirs**0.5


@pytest.mark.parametrize("shape", [(48, 48), (48, 72), (48, 60), (60, 48)])
def test_in_bfloat16_it_is_torchs_bit_for_bit_where_the_gram_matrix_is_not_used(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3))
    found = orthogonalize(matrices, dtype="bfloat16")
    for f, m in zip(found, matrices, strict=True):
        theirs = torch_orthogonal(m, JORDAN, 5, 1e-7).float()
        assert torch.equal(f, theirs) if max(shape) < 1.5 * min(shape) else (f - theirs).norm() < 0.05 * f.norm()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(12, 12), (8, 40), (40, 8), (1, 9), (5, 1)])
@pytest.mark.parametrize("eps", [1e-7, 0.0])
def test_zeros_stay_zero_and_nan_stays_in_its_matrix(dtype: str, shape: tuple[int, int], eps: float) -> None:
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    alone = orthogonalize(matrices[3:], dtype=dtype, eps=eps)
    matrices[0] = 0.0
    matrices[1, 0, 0] = float("nan")
    matrices[2, 0, 0] = float("inf")
    found = orthogonalize(matrices, dtype=dtype, eps=eps)
    assert torch.equal(found[0], torch.zeros(shape))
    assert found[1].isnan().any() and found[2].isnan().any()
    assert torch.equal(found[3:], alone)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("coefficients", ["jordan", "polar-express"])
@pytest.mark.parametrize("ns_steps", [5, 12])
def test_rank_deficient_and_spiky_matrices_stay_bounded(dtype: str, coefficients: str, ns_steps: int) -> None:
    """Rounding in the Gram matrix would grow without bound where σ² drowns in it, if it were not formed anew in time."""
    spectra = {
        "one": torch.eye(1, 64, dtype=torch.float64)[0],
        "eight": (torch.arange(64) < 8).double(),
        "spike": torch.where(torch.arange(64) < 1, 1.0, 1e-3).double(),
        "steep": torch.logspace(0, -9, 64, dtype=torch.float64),
    }
    for name, s in spectra.items():
        for shape in ((64, 256), (256, 64), (64, 64)):
            found = orthogonalize(
                with_spectrum(*shape, s).float(), dtype=dtype, coefficients=coefficients, ns_steps=ns_steps
            )
            assert torch.linalg.matrix_norm(found, 2) < 1.35, (name, shape)


def test_scale_does_not_matter_above_eps_and_shrinks_below_it() -> None:
    matrix = torch.randn(16, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = matrix / matrix.norm()
    for power in (-60, 60):
        assert torch.equal(orthogonalize(matrix * 2.0**power, eps=0.0), orthogonalize(matrix, eps=0.0))
    below = orthogonalize(unit * 1e-9, eps=1e-3)
    torch.testing.assert_close(below, unit * 1e-6 * JORDAN[0] ** 5, rtol=1e-6, atol=0)


def test_the_result_does_not_depend_on_the_size_of_the_batch_beyond_rounding() -> None:
    for shape in ((32, 32), (24, 96), (96, 24)):
        for dtype in ("bfloat16", "float32"):
            matrices = torch.randn(9, *shape, generator=torch.Generator().manual_seed(1))
            whole = orthogonalize(matrices, dtype=dtype)
            for count in (1, 2, 5):
                torch.testing.assert_close(
                    orthogonalize(matrices[:count], dtype=dtype), whole[:count], rtol=0, atol=1e-2
                )


def test_the_gram_matrix_is_formed_anew_before_its_rounding_grows() -> None:
    def lengths(rows: int, columns: int, dtype: torch.dtype, coefficients: str = "jordan", steps: int = 5) -> list[int]:
        return [
            len(part) for part in _segments(schedule(coefficients, steps), torch.empty(1, rows, columns, dtype=dtype))
        ]

    assert lengths(128, 512, torch.bfloat16) == lengths(512, 128, torch.bfloat16) == [2, 2, 1]
    assert lengths(128, 512, torch.float32) == lengths(128, 512, torch.float64) == [5]
    assert lengths(128, 160, torch.bfloat16) == lengths(128, 160, torch.float32) == [1] * 5
    assert max(lengths(128, 512, torch.float32, steps=40)) <= 8  # a² = 12 a step
    assert lengths(128, 512, torch.bfloat16, "polar-express")[0] == 1  # its first step alone grows rounding 67-fold


def test_float32_products_that_are_allowed_to_be_bfloat16_are_taken_for_what_they_are() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        x = torch.empty(1, 128, 512)
        assert [len(part) for part in _segments(schedule("jordan", 5), x)] == [2, 2, 1]
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_compute_dtype_follows_the_device_and_the_input() -> None:
    native = torch.bfloat16 if multiplies_bfloat16("cpu") else torch.float32
    assert compute_dtype(None, torch.empty(1)) == compute_dtype(None, torch.empty(1, dtype=torch.bfloat16)) == native
    assert compute_dtype(None, torch.empty(1, dtype=torch.float64)) == torch.float64
    assert compute_dtype("float32", torch.empty(1, dtype=torch.float64)) == torch.float32
    assert multiplies_bfloat16("cuda") and not multiplies_bfloat16("mps")


def test_the_input_is_not_written_and_empty_batches_pass() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        matrix = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
        before = matrix.clone()
        assert orthogonalize(matrix).dtype == dtype and torch.equal(matrix, before)
        assert torch.equal(orthogonalize(matrix.mT), orthogonalize(matrix.mT.contiguous()))
    assert orthogonalize(torch.empty(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("matrix", "settings", "message"),
    [
        (torch.ones(3), {}, r"shape \(…, m, n\), got torch.float32 \(3,\)"),
        (torch.ones(3, 3, dtype=torch.int64), {}, "got torch.int64"),
        (torch.ones(3, 3, dtype=torch.complex64), {}, "got torch.complex64"),
        (np.ones((3, 3)), {}, "got ndarray"),
        (torch.ones(3, 3), {"dtype": "float16"}, "dtype='float16': write 'bfloat16'"),
        (torch.ones(3, 3), {"eps": -1.0}, "eps=-1.0"),
        (torch.ones(3, 3), {"eps": "small"}, "eps='small'"),
    ],
)
def test_bad_input_is_one_clear_line(matrix, settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        orthogonalize(matrix, **settings)
