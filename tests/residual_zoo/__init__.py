"""Residual blocks as people write them. `damped(x, a)` is the physics: the same block with every branch multiplied by a.

Each `damped` is written by hand, apart from `forward`, and knows nothing of how branches are found.
"""

from __future__ import annotations

from torch import nn

from tests.residual_zoo.arranged import (
    GPTJ,
    Adapted,
    BertLike,
    DeepNorm,
    Fractions,
    Gated,
    Helper,
    InPlace,
    InSubmodules,
    LayerScaled,
    Modulated,
    OutputNorm,
    PaLM,
    PlainPre,
    Post,
    ReZero,
    Sandwich,
    ScaledActivation,
    ShiftedSandwich,
    StochasticDepth,
    TorchAdd,
)
from tests.residual_zoo.layers import (
    BiasedScores,
    Bottleneck,
    ConvNeXt,
    LinearAttention,
    MambaLike,
    Mixer,
    Mixture,
    OneMatrix,
    OneMatrixModule,
    PreActivation,
    Recurrent,
    ResidualInside,
    Shared,
    StackedExperts,
    TorchAttention,
    WeightNormed,
    ZeroInit,
)
from tests.residual_zoo.models import (
    EncoderDecoder,
    LambdaGPT,
    Net,
    NormsOutside,
    PatchTransformer,
    SumOutside,
)
from tests.residual_zoo.parts import (
    IMAGE,
    Feed,
    SelfAttention,
    Swish,
    Two,
)
from tests.residual_zoo.refused import (
    Clipped,
    ConstantAdded,
    Dead,
    FusedGate,
    GatedByItself,
    Halved,
    Highway,
    HoldsTheStream,
    Interpolated,
    NoStream,
    OneMatrixTwice,
    PullsBack,
    Squeezed,
    Unscalable,
    UsedTwice,
)
from tests.residual_zoo.written import (
    Flamingo,
    HalfOfTheStream,
    HandPost,
    LateBias,
    Masked,
    Reversible,
)

__all__ = ["AXES", "FOUND", "IMAGE", "MODELS", "REFUSED", "Feed", "Net", "SelfAttention", "SumOutside", "Swish", "Two"]

FOUND: list[type[nn.Module]] = [
    PlainPre, InPlace, TorchAdd, Fractions, Helper, Post, DeepNorm, Sandwich, ShiftedSandwich, OutputNorm, GPTJ, PaLM,
    LayerScaled, ReZero, LateBias, HandPost, Reversible, HalfOfTheStream, Masked, Flamingo,
    ScaledActivation, StochasticDepth, InSubmodules, BertLike, Gated, Modulated, Adapted,
    Mixture, StackedExperts, MambaLike, Mixer, ConvNeXt, Bottleneck, PreActivation, OneMatrix, OneMatrixModule, Recurrent,
    TorchAttention, LinearAttention, BiasedScores, ResidualInside, Shared, WeightNormed, ZeroInit,
]  # fmt: skip
MODELS: list[type[nn.Module]] = [NormsOutside, EncoderDecoder, LambdaGPT, PatchTransformer]
REFUSED: list[type[nn.Module]] = [
    HoldsTheStream, PullsBack, GatedByItself, OneMatrixTwice, Clipped, ConstantAdded, Highway, Halved, Interpolated, Unscalable,
    UsedTwice, FusedGate, Dead, NoStream, Squeezed,
]  # fmt: skip
AXES = {
    "*.w_in": "stack in out", "*.w_back": "stack in out", "*.b_back": "stack out", "*.qkv": "stack in out",
    "*.w_o": "in out", "resid": "stack", "again": "stack", "*.t1.weight": "lookup lookup",
}  # fmt: skip
