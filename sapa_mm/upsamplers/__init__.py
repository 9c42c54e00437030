"""Upsampling modules, ``forward(x, guide)``.

They need torch alone. Where mmengine is installed they are in its root registry ``MODELS``.
"""

from .a2u import A2U
from .base import PairedUpsampler, Upsampler
from .build import SingleInputUpsampler, build_steps, build_upsampler
from .carafe import CARAFE
from .dysample import DySample
from .fade import FADE, FADELite
from .hosts import GuidedHost, GuidedType, guided_hosts
from .index_net import IndexNet
from .inspection import describe_upsampler, find_upsamplers, iter_upsamplers
from .max_unpooling import MaxUnpooling
from .sapa import SAPA
from .soft_clustering import Assignment, SoftClustering, SoftClusteringUpsampler, superpixels

__all__ = [
    'A2U',
    'CARAFE',
    'FADE',
    'SAPA',
    'Assignment',
    'DySample',
    'FADELite',
    'GuidedHost',
    'GuidedType',
    'IndexNet',
    'MaxUnpooling',
    'PairedUpsampler',
    'SingleInputUpsampler',
    'SoftClustering',
    'SoftClusteringUpsampler',
    'Upsampler',
    'build_steps',
    'build_upsampler',
    'describe_upsampler',
    'find_upsamplers',
    'guided_hosts',
    'iter_upsamplers',
    'superpixels',
]
