"""How torch's operations treat a positive factor: the names behind `graph`.

An operation that is in none of these tables ends every homogeneity, which can only lead to a refusal.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEEPS = _words(
    """view _unsafe_view reshape _reshape_alias t t_ transpose transpose_ permute expand slice select unsqueeze unsqueeze_
    squeeze squeeze_ clone _to_copy alias detach contiguous index index_select gather take_along_dim roll flip sum mean cumsum
    neg negative split split_with_sizes chunk unbind unfold as_strided repeat tile tril triu diagonal movedim narrow flatten
    lift_fresh view_as_real view_as_complex real imag _conj conj resolve_conj resolve_neg relu relu_ leaky_relu leaky_relu_ abs
    amax amin max min sort topk native_dropout dropout pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    im2col col2im reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d avg_pool1d avg_pool2d avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d max_pool2d_with_indices max_pool3d_with_indices
    max_pool1d_with_indices upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_linear1d upsample_bicubic2d
    _fft_r2c _fft_c2r _fft_c2c repeat_interleave linalg_vector_norm norm"""
)
"""On one value, and commuting with `t·v` for t > 0; further tensors are indices."""
PRODUCTS = _words("mul mul_ mm bmm matmul mv dot outer ger")
"""Of two values, and linear in each."""
MATRIX_PRODUCTS = _words("mm bmm matmul mv linear convolution _convolution convolution_overrideable addmm _grouped_mm")
"""Products that mix features: a parameter in one of them is a matrix in series."""
SUMS = _words("add add_ sub sub_ subtract subtract_")
JOINS = _words("maximum minimum fmax fmin")
"""Homogeneous in all their operands together, as a sum is."""
WRITES = {"index_add": 3, "index_add_": 3, "scatter_add": 3, "scatter_add_": 3, "index_put": 2, "index_put_": 2,
          "scatter": 3, "scatter_": 3, "index_copy": 3, "index_copy_": 3, "slice_scatter": 1, "select_scatter": 1,
          "masked_scatter": 2, "masked_scatter_": 2, "scatter_reduce": 3, "scatter_reduce_": 3}  # fmt: skip
"""That put a value into a part of another, and which argument that value is."""
ZEROS = _words("zeros new_zeros zeros_like zero_ zero empty new_empty empty_like empty_strided new_empty_strided")
"""That make a value which is nothing, or not yet anything."""
COMPARES = _words("gt lt ge le eq ne")
"""With nothing: the same for `t·v` as for v."""
