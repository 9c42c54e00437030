"""Every upsampler that torch alone can build, and what it computes for a seed."""

import copy
import pickle

import torch
from torch import Tensor

from sapa_mm.upsamplers import build_upsampler

CONFIGS: dict[str, dict] = {
    'nearest': dict(type='nearest'),
    'bilinear': dict(type='bilinear', align_corners=True),
    'carafe': dict(type='CARAFE', compressed_channels=8),
    'dysample': dict(type='DySample'),
    'dysample_plus': dict(type='DySample', style='pl', dynamic_scope=True),
    'fade': dict(type='FADE', compressed_channels=8),
    'fade_lite': dict(type='FADELite'),
    'clustering': dict(type='SoftClusteringUpsampler', embed_dims=4, border='mask'),
    'max_unpooling': dict(type='MaxUnpooling'),
    **{f'sapa_{kind}': dict(type='SAPA', similarity=kind) for kind in ('inner', 'plain', 'gated')},
    'sapa_without_bias': dict(type='SAPA', bias=False, norm_affine=False),
    **{f'index_net_{kind}': dict(type='IndexNet', variant=kind) for kind in ('hin', 'm2o', 'o2o')},
    **{f'a2u_{mode}': dict(type='A2U', mode=mode, paired=True) for mode in ('static', 'dynamic')},
}

Results = dict[str, dict[str, Tensor]]


def compute(cfg: dict) -> dict[str, Tensor]:
    """The state dict at first, after init_weights, the output, and the gradients of the inputs."""
    torch.manual_seed(5)
    module = build_upsampler(cfg, 8, 8)
    found = {f'state {key}': value.clone() for key, value in module.state_dict().items()}
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    guide = torch.randn(2, 8, 9, 14, requires_grad=True)
    grad = torch.randn(2, 8, 9, 14)
    for kind, other in {
        '': module,
        ' of a copy': copy.deepcopy(module),
        ' of an unpickled copy': pickle.loads(pickle.dumps(module)),
    }.items():
        x.grad = guide.grad = None
        found[f'out{kind}'] = out = other(x, guide)
        out.backward(grad)
        found[f'x.grad{kind}'] = x.grad
        if guide.grad is not None:
            found[f'guide.grad{kind}'] = guide.grad
    module.init_weights()
    found |= {f'again {key}': value for key, value in module.state_dict().items()}
    return {key: value.detach() for key, value in found.items()}


def compute_all() -> Results:
    """What `compute` gives for all of them."""
    return {name: compute(cfg) for name, cfg in CONFIGS.items()}
