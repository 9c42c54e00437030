"""Similarity-aware point affiliation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import point_affiliation
from ..ops.affiliation import BORDERS
from ..ops.checks import (
    check_bool,
    check_choice,
    check_kernel_size,
    check_positive,
    check_positive_int,
)
from ..ops.normalization import NORMALIZATIONS
from ..ops.parents import upsample_parent
from .base import Upsampler, zero_bias
from .registration import MODELS

SIMILARITIES = ('inner', 'bilinear', 'plain', 'gated')
SELF_INPUTS = ('normalized', 'raw')
SELF_PROJECTIONS = ('separate', 'key', 'query')


def _trunc_normal_(tensor: Tensor, std: float) -> None:
    """Draw from a normal distribution cut at -2 and 2, by its quantiles.

    This is what mmengine does. `torch.nn.init.trunc_normal_` draws other numbers in newer versions
    of torch, but a seed shall give the same module everywhere. The bounds are so far away that the
    clamp is for an infinite quantile alone.
    """
    with torch.no_grad():
        tensor.uniform_(-1, 1).erfinv_().mul_(std * math.sqrt(2)).clamp_(-2, 2)


@MODELS.register_module()
class SAPA(Upsampler):
    r"""Upsample a decoder feature with kernels from its similarity to an encoder feature.

    Every encoder point (the query) is compared with the K x K decoder points (the keys) around its
    parent; the normalized similarities assemble the decoder feature (SAPA: Similarity-Aware Point
    Affiliation for Feature Upsampling, Lu et al., NeurIPS 2022). With the decoder feature x, the
    guide y, a LayerNorm LN over channels, and NN, which gives a pixel its parent's value:

    ============  ==========================================================  ==============
    similarity    query q                                                     key k
    ============  ==========================================================  ==============
    ``inner``     LN(y)                                                       LN(x)
    ``bilinear``  LN(y) Wy + b                                                LN(x) Wk + b
    ``plain``     LN(y) Wy + NN(self(x) Wx) + b                               LN(x) Wk + b
    ``gated``     g (LN(y) Wy + b) + (1 - g) NN(self(x) Wx + b),              LN(x) Wk + b
                  g = NN(sigmoid(LN(x) wg + b))
    ============  ==========================================================  ==============

    The kernel at output pixel l' with parent l is
    :math:`w(p) = h(\langle q_{l'}, k_{l+p} \rangle / T) / \sum h` and the output
    :math:`\sum_p w(p)\, x_{l+p}`. In the paper's tables SAPA-I, -B and -G are inner, bilinear and
    gated.

    Args:
        in_channels: Channels C of x.
        guide_channels: Channels Cy of the guide. Default: ``in_channels``.
        similarity: ``'inner'`` (no parameters, needs Cy = C), ``'bilinear'``, ``'plain'`` or
            ``'gated'``.
        embed_dims: Width d of query and key, except with ``'inner'``.
        kernel_size: Window size K, odd.
        normalization: ``'softmax'``, ``'sigmoid'``, ``'relu'``, ``'softplus'`` or ``'none'``.
        temperature: T.
        border: What lies outside the image: ``'zero'`` (key and value 0, as published), ``'mask'``
            (left out of the normalization) or ``'replicate'``.
        self_input: What self(x) is in the plain and gated forms: ``'normalized'``, LN(x), as the
            paper's text says; or ``'raw'``, x, as the authors' released code computes.
        self_projection: In the same forms, ``'separate'``: a Wx of its own, the printed equation
            and the released code; ``'key'``: Wx = Wk, the complexity in the paper's Table 1;
            ``'query'``: Wx = Wy, needs Cy = C.
        bias: Whether the projections have a bias.
        norm_affine: Whether the LayerNorms have parameters. Default: except with ``'inner'``.
        init_cfg: As in every mmengine module. Default: projections truncated normal with std 0.02
            and bias 0, LayerNorms weight 1 and bias 0.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An unknown choice, an even ``kernel_size``, or channels that must be equal and
            are not.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | None = None,
        similarity: str = 'bilinear',
        embed_dims: int = 32,
        kernel_size: int = 5,
        normalization: str = 'softmax',
        temperature: float = 1.0,
        border: str = 'zero',
        self_input: str = 'normalized',
        self_projection: str = 'separate',
        bias: bool = True,
        norm_affine: bool | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(in_channels, guide_channels, init_cfg)
        check_positive_int('embed_dims', embed_dims)
        check_choice('similarity', similarity, SIMILARITIES)
        check_kernel_size(kernel_size)
        check_choice('normalization', normalization, NORMALIZATIONS)
        check_positive('temperature', temperature)
        check_choice('border', border, BORDERS)
        check_choice('self_input', self_input, SELF_INPUTS)
        check_choice('self_projection', self_projection, SELF_PROJECTIONS)
        check_bool('bias', bias)
        if norm_affine is not None:
            check_bool('norm_affine', norm_affine)
        has_self_term = similarity in ('plain', 'gated')
        if similarity == 'inner':
            self.check_equal_channels("similarity 'inner'")
        elif has_self_term and self_projection == 'query':
            self.check_equal_channels("self_projection 'query'")

        self.similarity = similarity
        self.embed_dims = in_channels if similarity == 'inner' else embed_dims
        self.kernel_size = kernel_size
        self.normalization = normalization
        self.temperature = temperature
        self.border = border
        self.self_input = self_input
        self.self_projection = self_projection
        self.self_is_key = self_input == 'normalized' and self_projection == 'key'

        affine = similarity != 'inner' if norm_affine is None else norm_affine
        self.norm_x = nn.LayerNorm(in_channels, elementwise_affine=affine)
        self.norm_guide = nn.LayerNorm(self.guide_channels, elementwise_affine=affine)
        if similarity != 'inner':
            self.key_proj = nn.Linear(in_channels, embed_dims, bias)
            self.query_proj = nn.Linear(self.guide_channels, embed_dims, bias)
        if has_self_term and self_projection == 'separate':
            # In the plain form one bias is enough for the sum.
            self.self_proj = nn.Linear(in_channels, embed_dims, bias and similarity == 'gated')
        if similarity == 'gated':
            self.gate_proj = nn.Linear(in_channels, 1, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the projections and LayerNorms."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _trunc_normal_(module.weight, std=0.02)
                zero_bias(module)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def _self_term(self, x: Tensor, normalized: Tensor, key: Tensor) -> Tensor:
        """Compute self(x) Wx + b, (N, d, H, W); the plain form's query has the b."""
        gated = self.similarity == 'gated'
        if self.self_is_key:
            # It is LN(x) Wk + b again.
            shift = self.key_proj.bias
            return key if gated or shift is None else key - shift[:, None, None]
        projections = {'separate': 'self_proj', 'key': 'key_proj', 'query': 'query_proj'}
        projection = getattr(self, projections[self.self_projection])
        features = normalized if self.self_input == 'normalized' else x
        bias = projection.bias if gated else None
        return F.linear(features, projection.weight, bias).movedim(-1, 1)

    def embed(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the query and the key.

        Args:
            x: (N, C, H, W).
            guide: (N, Cy, Hg, Wg).

        Returns:
            Query (N, d, Hg, Wg) and key (N, d, H, W).
        """
        size = guide.shape[2:]
        x, guide = x.movedim(1, -1), guide.movedim(1, -1)
        key = normalized = self.norm_x(x)
        query = self.norm_guide(guide)
        if self.similarity != 'inner':
            key, query = self.key_proj(normalized), self.query_proj(query)
        query, key = query.movedim(-1, 1), key.movedim(-1, 1)
        if self.similarity == 'plain':
            query = query + upsample_parent(self._self_term(x, normalized, key), size)
        elif self.similarity == 'gated':
            gate = torch.sigmoid(self.gate_proj(normalized)).movedim(-1, 1)
            self_term = self._self_term(x, normalized, key)
            # Both are constant over a cell, so they are weighed at low resolution first.
            gated_self = upsample_parent((1 - gate) * self_term, size)
            query = upsample_parent(gate, size) * query + gated_self
        return query, key

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``x`` to the size of ``guide``.

        Args:
            x: Decoder feature (N, C, H, W).
            guide: Encoder feature (N, Cy, Hg, Wg), at least as large.

        Returns:
            (N, C, Hg, Wg).

        Raises:
            TypeError: Not floating point tensors.
            ValueError: Shapes that do not fit the module or each other.
        """
        self.check_inputs(x, guide)
        query, key = self.embed(x, guide)
        return point_affiliation(
            query,
            key,
            x,
            kernel_size=self.kernel_size,
            normalization=self.normalization,
            temperature=self.temperature,
            border=self.border,
        )

    def flops(self, size: tuple[int, int], guide_size: tuple[int, int]) -> int:
        """Count the multiply-adds of one image.

        Per pixel of x: C d for the key and, with a self term that is no copy of it, C d more; with
        the gate C + d. Per pixel of the guide: Cy d for the query, K^2 d for the scores, K^2 C for
        the assembly, with the gate d. With ``'inner'`` only scores, with d = C, and assembly.

        Args:
            size: (H, W) of x.
            guide_size: (Hg, Wg) of the guide.

        Returns:
            Multiply-adds, each counted once.
        """
        low, high = 0, self.kernel_size**2 * (self.embed_dims + self.in_channels)
        if self.similarity != 'inner':
            low += self.in_channels * self.embed_dims
            high += self.guide_channels * self.embed_dims
        if self.similarity in ('plain', 'gated') and not self.self_is_key:
            low += self.in_channels * self.embed_dims
        if self.similarity == 'gated':
            low += self.in_channels + self.embed_dims
            high += self.embed_dims
        return size[0] * size[1] * low + guide_size[0] * guide_size[1] * high

    def extra_repr(self) -> str:
        """Show the options that no sub-module shows."""
        options = [
            super().extra_repr(),
            f'similarity={self.similarity!r}, embed_dims={self.embed_dims}',
            f'kernel_size={self.kernel_size}, normalization={self.normalization!r}',
            f'temperature={self.temperature}, border={self.border!r}',
        ]
        if self.similarity in ('plain', 'gated'):
            options.append(
                f'self_input={self.self_input!r}, self_projection={self.self_projection!r}'
            )
        return ', '.join(options)
