"""Similarity-aware point affiliation."""

import math

import torch
from torch import Tensor, nn

from ..ops import embed, point_affiliation
from ..ops.affiliation import BORDERS
from ..ops.checks import (
    check_bool,
    check_choice,
    check_kernel_size,
    check_positive,
    check_positive_int,
)
from ..ops.dispatch import autocast
from ..ops.normalization import NORMALIZATIONS
from .base import Upsampler, zero_bias
from .registration import MODELS

SIMILARITIES = ('inner', 'bilinear', 'plain', 'gated')
SELF_INPUTS = ('normalized', 'raw')
# On a GPU the pixels of several embeddings in one map begin at multiples of so many values, which
# its kernels read at once.
ALIGNED_CHANNELS = 16
SELF_PROJECTIONS = ('separate', 'key', 'query')


def _trunc_normal_(tensor: Tensor, std: float) -> None:
    """Draw from a normal distribution cut at -2 and 2, by its quantiles.

    This is what mmengine does. `torch.nn.init.trunc_normal_` draws other numbers in newer versions
    of torch, but a seed shall give the same module everywhere. The bounds are so far away that the
    clamp is for an infinite quantile alone.
    """
    with torch.no_grad():
        tensor.uniform_(-1, 1).erfinv_().mul_(std * math.sqrt(2)).clamp_(-2, 2)


def _embed(
    x: Tensor,
    norm: nn.LayerNorm,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:
    """Normalize ``x`` as a LayerNorm does, and do the rest of `embed`."""
    return embed(
        x,
        weight,
        bias,
        norm_weight=norm.weight,
        norm_bias=norm.bias,
        eps=norm.eps,
        gate=gate,
        addend=addend,
    )


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
        temperature: T. The paper's is 1; with ``'inner'``, whose similarities are sums over C
            channels, the square root of C trains better where it was tried (configs/camvid).
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

    def _project_normalized(
        self, x: Tensor, layers: dict[str, tuple[Tensor, Tensor | None]]
    ) -> dict[str, Tensor]:
        """Project LN(x) in one pass by several pairs of weight and bias: (N, d, H, W) each."""
        if len(layers) == 1:
            [(name, (weight, bias))] = layers.items()
            return {name: _embed(x, self.norm_x, weight, bias)}
        weights, biases = (list(parts) for parts in zip(*layers.values(), strict=True))
        rest = -sum(map(len, weights)) % ALIGNED_CHANNELS
        if x.is_cuda and rest:
            weights.append(weights[0].new_zeros(rest, x.shape[1]))
            biases.append(None)
        bias = None
        if any(part is not None for part in biases):
            pairs = zip(weights, biases, strict=True)
            bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs])
        projected = _embed(x, self.norm_x, torch.cat(weights), bias)
        maps = projected.split([len(w) for w in weights], 1)
        return dict(zip(layers, maps, strict=False))

    def _embed_low(self, x: Tensor) -> dict[str, Tensor]:
        """Compute what the pixels of ``x`` give to queries and keys.

        Returns:
            ``'key'`` (N, d, H, W); in the plain and gated forms ``'addend'``, self(x) Wx + b,
            likewise (the plain form's query has the b); in the gated form ``'gate'`` (N, 1, H, W),
            the gate before the sigmoid.
        """
        layers: dict[str, tuple[Tensor, Tensor | None]] = {}
        layers['key'] = (self.key_proj.weight, self.key_proj.bias)
        if self.similarity == 'bilinear':
            return self._project_normalized(x, layers)
        gated = self.similarity == 'gated'
        names = {'separate': 'self_proj', 'key': 'key_proj', 'query': 'query_proj'}
        own = getattr(self, names[self.self_projection])
        own_bias = own.bias if gated else None
        if self.self_input == 'normalized' and not self.self_is_key:
            layers['addend'] = (own.weight, own_bias)
        if gated:
            layers['gate'] = (self.gate_proj.weight, self.gate_proj.bias)
        low = self._project_normalized(x, layers)
        if self.self_is_key:
            # It is LN(x) Wk + b again.
            shift = None if gated else self.key_proj.bias
            low['addend'] = low['key'] if shift is None else low['key'] - shift[:, None, None]
        elif self.self_input == 'raw':
            low['addend'] = embed(x, own.weight, own_bias, normalize=False)
        return low

    def embed(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the query and the key.

        Args:
            x: (N, C, H, W).
            guide: (N, Cy, Hg, Wg).

        Returns:
            Query (N, d, Hg, Wg) and key (N, d, H, W).
        """
        if self.similarity == 'inner':
            return _embed(guide, self.norm_guide), _embed(x, self.norm_x)
        low = self._embed_low(x)
        key = low.pop('key')
        projection = self.query_proj
        return _embed(guide, self.norm_guide, projection.weight, projection.bias, **low), key

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
        x, guide = autocast(x, guide)
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
