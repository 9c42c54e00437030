"""What the tests of the upsampling modules share: plain definitions, and comparison with them."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from mmengine.model import BaseModule
from testing_utils import DTYPES, TOLERANCES, assert_close_to_reference, make_tensor
from torch import Tensor, nn
from torch.nn import functional as F

#: What float16 shares with bfloat16, the wider tolerance of the two tells.
MODULE_DTYPES = tuple(dtype for dtype in DTYPES if dtype != torch.float16)

#: Shapes of x and guide that a module of 8 channels each refuses, and what the message names.
BAD_SHAPES = [
    ((2, 7, 3, 4), (2, 8, 6, 8), ('x', '8', '7')),
    ((2, 8, 3, 4), (2, 7, 6, 8), ('guide', '8', '7')),
    ((2, 8, 3, 4), (2, 8, 2, 8), ('guide',)),
    ((2, 8, 3, 4), (2, 8, 6, 3), ('guide',)),
    ((2, 8, 3, 4), (1, 8, 6, 8), ('guide',)),
    ((8, 3, 4), (2, 8, 6, 8), ('x',)),
    ((2, 8, 3, 4), (8, 6, 8), ('guide',)),
    ((2, 8, 0, 4), (2, 8, 6, 8), ('x',)),
]


def refused(*names: str, error: type | tuple = (TypeError, ValueError)):
    """Expect an error whose message holds all ``names``."""
    pattern = ''.join(rf'(?=.*\b{re.escape(name)}\b)' for name in names)
    return pytest.raises(error, match=rf'(?s){pattern}')


def check_refuses_features(module: nn.Module) -> None:
    """Hold a module of 8 channels to naming the feature of a wrong shape, type or dtype."""
    for x, guide, names in BAD_SHAPES:
        with refused(*names, error=ValueError):
            module(torch.zeros(x), torch.zeros(guide))
    x, guide = torch.zeros(2, 8, 3, 4), torch.zeros(2, 8, 6, 8)
    with refused('x', 'list', error=TypeError):
        module([1.0], guide)
    with refused('guide', 'list', error=TypeError):
        module(x, [1.0])
    with refused('x', 'int64', error=TypeError):
        module(x.long(), guide.long())
    with refused('guide', 'float64', 'float32', error=TypeError):
        module(x, guide.double())


def check_paired_protocol(module: nn.Module, x: Tensor, guide: Tensor) -> None:
    """Both directions take `encode`'s result, give the same with it, and really use it."""
    encoding = module.encode(guide)
    assert isinstance(encoding, Tensor)
    # Another image of the batch: whoever ignores the encoding gives the wrong image's result.
    other = guide.flip(0)
    for run in (partial(module, x), module.downsample):
        expected = run(guide)
        assert torch.equal(run(guide, encoding), expected)
        assert torch.equal(run(guide, encoding=encoding), expected)
        assert not torch.allclose(run(other, encoding), run(other))


def check_refuses_guides(module: nn.Module) -> None:
    """Hold `encode` and `downsample` of a module of 8 channels to naming a bad guide."""
    for method in (module.encode, module.downsample):
        with refused('guide', '8', '7', error=ValueError):
            method(torch.zeros(2, 7, 6, 8))
        for shape in ((8, 6, 8), (2, 8, 0, 8)):
            with refused('guide', error=ValueError):
                method(torch.zeros(shape))
        with refused('guide', 'list', error=TypeError):
            method([1.0])
        with refused('guide', 'int64', error=TypeError):
            method(torch.zeros(2, 8, 6, 8, dtype=torch.int64))


def check_refuses_encodings(module: nn.Module) -> None:
    """Hold a module of 8 channels to naming an encoding that is not of this guide."""
    x, guide = torch.randn(2, 8, 3, 4), torch.randn(2, 8, 6, 8)
    encoding = module.encode(guide)
    for run in (partial(module, x), module.downsample):
        with refused('encoding', 'list', error=TypeError):
            run(guide, [1.0])
        for wrong in (encoding[:1], encoding[:, :, :2], encoding[..., :3], encoding[0]):
            with refused('encoding', error=ValueError):
                run(guide, wrong)
        with refused('encoding', error=ValueError):
            run(guide, torch.cat([encoding, encoding], dim=1))


def check_batch_of_one(module: nn.Module, x: Tensor, guide: Tensor) -> None:
    """Every image of a batch gives what it gives alone."""
    out = module(x, guide)
    for i in range(len(x)):
        torch.testing.assert_close(module(x[i : i + 1], guide[i : i + 1]), out[i : i + 1])


def check_layouts(module: nn.Module, x_shape: tuple, guide_shape: tuple, layout: str) -> None:
    """Results and gradients do not depend on how the inputs lie in memory; float64."""
    x, guide = (
        make_tensor(*shape, dtype=torch.float64, layout=layout) for shape in (x_shape, guide_shape)
    )
    results = []
    for inputs in ((x, guide), (x.contiguous(), guide.contiguous())):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        out = module(*leaves)
        # Not the same everywhere, so that pixels that changed places show.
        grad = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
        results.append(
            (
                out,
                *torch.autograd.grad(out, leaves, grad, allow_unused=True, materialize_grads=True),
            )
        )
    for what, got, expected in zip(('output', 'x', 'guide'), *results, strict=True):
        torch.testing.assert_close(got, expected, msg=lambda m, what=what: f'{what}: {m}')
    formats = {'channels_last': torch.channels_last}
    memory_format = formats.get(layout, torch.contiguous_format)
    assert results[0][0].is_contiguous(memory_format=memory_format)
    assert results[1][0].is_contiguous()


def check_autocast(module: nn.Module, run: Callable[..., Tensor], x: Tensor, guide: Tensor) -> None:
    """Under bfloat16 autocast: what float32 gives, in bfloat16, and gradients of the leaves' dtype.

    Args:
        module: In float32.
        run: ``run(x, guide)``, a method of the module or itself.
        x: (N, C, H, W), bfloat16, as the convolutions of a host give it under autocast.
        guide: (N, Cy, Hg, Wg), bfloat16 or float32.
    """
    expected = run(x.float(), guide.float()).detach()
    leaves = {'x': x, 'guide': guide} | dict(module.named_parameters())
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    with torch.autocast('cpu', torch.bfloat16):
        out = run(x, guide)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(
        out.sum(), leaves.values(), allow_unused=True, materialize_grads=True
    )
    for name, grad in zip(leaves, grads, strict=True):
        assert grad.dtype == leaves[name].dtype, name
        assert grad.isfinite().all(), name
    assert_close_to_reference(out.detach(), expected)


def check_host_initialises(upsampler: nn.Module, kind: type) -> None:
    """A host's ``init_cfg`` of its layers of type ``kind`` does not reach into an upsampler.

    Its parameters are 3 before, and 7 after the host's turn: both must have gone.
    """
    layers = [layer for layer in upsampler.modules() if isinstance(layer, kind)]
    assert layers
    host = BaseModule({'type': 'Constant', 'layer': kind.__name__, 'val': 7.0, 'bias': 7.0})
    host.upsampler = upsampler
    host.own = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        for parameter in upsampler.parameters():
            parameter.fill_(3.0)
    host.init_weights()
    assert host.own.weight.eq(7).all()
    for name, parameter in upsampler.named_parameters():
        assert not parameter.eq(3).any(), name
        assert not parameter.eq(7).any(), name


def to_parent_grid(x: Tensor, size: tuple[int, int]) -> Tensor:
    """NN(x): every output pixel's parent, in integer arithmetic."""
    rows = [i * x.shape[2] // size[0] for i in range(size[0])]
    cols = [j * x.shape[3] // size[1] for j in range(size[1])]
    return x[:, :, rows][:, :, :, cols]


def shuffle(x: Tensor, ratio: int) -> Tensor:
    """(N, I * ratio**2, h, w) as (N, I, ratio * h, ratio * w), sub-positions row-major."""
    n, channels, h, w = x.shape
    out = x.new_zeros(n, channels // ratio**2, ratio * h, ratio * w)
    for dy in range(ratio):
        for dx in range(ratio):
            out[:, :, dy::ratio, dx::ratio] = x[:, dy * ratio + dx :: ratio**2]
    return out


def pad_to_even(x: Tensor) -> Tensor:
    """Zeros below and to the right, where a side is odd."""
    return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))


def blocks(x: Tensor) -> Tensor:
    """(N, C, 2h, 2w) as (N, C, 4, h, w): the 2 x 2 blocks, sub-positions row-major."""
    return torch.stack([x[:, :, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], dim=2)


def randomize(module: nn.Module) -> nn.Module:
    """Parameters under which every layer gives values of about unit size."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.normal_(std=fan_in**-0.5)
        for layer in module.modules():
            if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
                layer.weight.uniform_(0.7, 1.3)
                layer.bias.normal_(std=0.3)
    return module


def avoid_kinks(module: nn.Module, **spread: float) -> None:
    """Keep what the norms give away from where ReLU6 and LeakyReLU bend.

    At a bend a rounding error turns into a gradient of another size, which says nothing about the
    module. Which side a channel lies on alternates.

    Args:
        module: The module, changed in place.
        **spread: ``weight``, and ``even`` and ``odd``, the bias of every other channel.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
                layer.weight.fill_(spread['weight'])
                layer.bias[::2].fill_(spread['even'])
                layer.bias[1::2].fill_(spread['odd'])


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_against_oracle(
    module: nn.Module,
    run: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    *,
    margins: dict[str, tuple[int, int]] | None = None,
    tolerance: float | None = None,
    grad_tolerance: float | None = None,
    one_vector: bool = False,
) -> None:
    """Hold a module's result and every gradient, parameters included, to a plain float64 version.

    Args:
        module: In the dtype of the inputs.
        run: ``run(*inputs)``, a method of the module or itself.
        oracle: ``oracle(state, *inputs)``, given a state dict and the inputs in float64.
        inputs: Name to tensor, in the order of the arguments.
        margins: Name of an input, or 'output', to the border strips that are compared apart.
        tolerance: See :func:`testing_utils.assert_close_to_reference`.
        grad_tolerance: The same of the gradients. Default: ``tolerance``.
        one_vector: Take the gradients of all parameters for one, as the norm of some of them is
            mostly the rounding of torch's own layers.
    """
    margins = margins or {}
    state = {name: t.detach().double().clone() for name, t in module.state_dict().items()}
    parameters = dict(module.named_parameters())
    exact_leaves = {name: t.detach().double().contiguous() for name, t in inputs.items()}
    exact_leaves |= {name: state[name] for name in parameters}
    for leaf in exact_leaves.values():
        leaf.requires_grad_()
    expected = oracle(state, *(exact_leaves[name] for name in inputs))

    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    actual = run(*leaves.values())
    leaves |= parameters
    dtype = next(iter(inputs.values())).dtype
    assert actual.dtype == dtype
    grad = make_tensor(*expected.shape, dtype=dtype)
    options = {'allow_unused': True, 'materialize_grads': True}
    grads = torch.autograd.grad(actual, list(leaves.values()), grad, **options)
    exact = torch.autograd.grad(expected, list(exact_leaves.values()), grad.double(), **options)
    tolerance = TOLERANCES[dtype] if tolerance is None else tolerance
    assert_close_to_reference(
        actual.detach(),
        expected.detach(),
        margin=margins.get('output', (0, 0)),
        tolerance=tolerance,
    )
    for name, got in zip(leaves, grads, strict=True):
        assert got.dtype == dtype, name
    pairs = dict(zip(leaves, zip(grads, exact, strict=True), strict=True))
    if one_vector and parameters:
        of_parameters = [pairs.pop(name) for name in parameters]
        pairs['parameters'] = [
            torch.cat([t.flatten() for t in side]) for side in zip(*of_parameters, strict=True)
        ]
    for name, (got, reference) in pairs.items():
        if name not in inputs:
            got, reference = got.flatten()[None], reference.flatten()[None]
        assert_close_to_reference(
            got,
            reference,
            margin=margins.get(name, (0, 0)),
            tolerance=tolerance if grad_tolerance is None else grad_tolerance,
            what=f'gradient of {name}',
        )


def check_gradients_numerically(module: nn.Module, run: str, *inputs: Tensor) -> None:
    """Gradcheck in float64: the inputs and every parameter."""
    parameters = dict(module.named_parameters())
    others = dict(module.named_buffers())

    class Run(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *args):
            return getattr(self.module, run)(*args)

    wrapper = Run()

    def function(*args):
        given = dict(zip(parameters, args[len(inputs) :], strict=True))
        # Copies, as a BatchNorm counts its calls.
        state = {name: buffer.clone() for name, buffer in others.items()} | given
        state = {f'module.{name}': tensor for name, tensor in state.items()}
        return torch.func.functional_call(wrapper, state, args[: len(inputs)])

    leaves = [t.detach().clone().requires_grad_() for t in (*inputs, *parameters.values())]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=False)
