"""What the tests of soft clustering share: modules, inputs, and the definition written out."""

import torch
from testing_utils import SIZES, make_tensor
from torch.nn import functional as F
from upsampler_oracles import randomize, to_parent_grid

from sapa_mm.ops import reference
from sapa_mm.upsamplers import SoftClustering

#: Points and clusters differ in width, so that their projections can be told apart.
POINTS, CLUSTERS = 5, 7
BORDERS = ('zero', 'mask')
#: These are all forms of the similarity; the temperature keeps the softmax off its corners.
FORMS = [
    {'normalize': normalize, 'border': border, 'temperature': temperature}
    for normalize, temperature in ((True, 0.2), (False, 1.5))
    for border in BORDERS
]
#: There are ratios 1 to 4, 33x45 over 17x23, other odd ones, and maps smaller than the window. Left
#: out are those where one cluster is all there is: the gradients of its weight, which is 1, are 0.
CASES = [
    (sizes, kernel_size, form)
    for kernel_size, chosen in ((3, SIZES), (5, [SIZES[i] for i in (0, 3, 4, 8, 9)]))
    for sizes in chosen
    for form in FORMS
    if not (form['border'] == 'mask' and sizes.low == (1, 1))
]


def make_module(cls=SoftClustering, dtype=torch.float64, **options):
    """A module with random parameters whose points, or guide, have the channels ``POINTS``."""
    channels = (POINTS, CLUSTERS) if cls is SoftClustering else (CLUSTERS, POINTS)
    return randomize(cls(*channels, **{'embed_dims': 6, **options})).to(dtype)


def make_inputs(sizes, dtype=torch.float64):
    return {
        'points': make_tensor(sizes.n, POINTS, *sizes.high, mean=0.4, dtype=dtype),
        'clusters': make_tensor(sizes.n, CLUSTERS, *sizes.low, mean=-0.3, dtype=dtype),
    }


def projections(state):
    """Wq (d, POINTS) and Wk (d, CLUSTERS), whatever they are called."""
    by_width = {weight.shape[1]: weight.flatten(1) for weight in state.values()}
    assert len(state) == 2
    return by_width[POINTS], by_width[CLUSTERS]


def embed(state, points, clusters, normalize):
    """Query and key, divided by their norms."""
    maps = []
    for weight, x in zip(projections(state), (points, clusters), strict=True):
        projected = torch.einsum('dc,nchw->ndhw', weight, x)
        if normalize:
            projected = projected / projected.square().sum(dim=1, keepdim=True).sqrt()
        maps.append(projected)
    return maps


def affiliation(state, points, clusters, value, *, normalize, border, temperature, kernel_size):
    """The whole operator by the reference of the project's own operator."""
    return reference.point_affiliation(
        *embed(state, points, clusters, normalize),
        value,
        kernel_size=kernel_size,
        temperature=temperature,
        border=border,
    )


def weights_of(state, points, clusters, *, normalize, border, temperature, kernel_size):
    """The weights, from windows that F.unfold cuts out of the clusters' grid."""
    query, key = embed(state, points, clusters, normalize)
    n, _, h, w = key.shape

    def windows(x):
        cut = F.unfold(x, kernel_size, padding=kernel_size // 2)
        cut = to_parent_grid(cut.view(n, -1, h, w), query.shape[2:])
        return cut.unflatten(1, (-1, kernel_size**2))

    scores = torch.einsum('ndyx,ndpyx->npyx', query, windows(key)) / temperature
    if border == 'mask':
        inside = windows(torch.ones_like(key[:, :1]))[:, 0] > 0
        scores = scores.masked_fill(~inside, -torch.inf)
    return scores.softmax(dim=1)


def layers_of(module):
    """The sub-modules that hold the projections."""
    return [layer for layer in module.modules() if getattr(layer, 'weight', None) is not None]
