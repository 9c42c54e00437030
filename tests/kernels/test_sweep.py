"""Random calls of the operators, forward and gradients, against the float64 reference.

Case i is drawn by ``random.Random(i)`` alone, so that its number reproduces it:
``check_case(draw_case(i), device)``. ``--kernel-cases N`` sets how many there are.
"""

import random
from typing import NamedTuple

import pytest
import testing_embedding
import torch
from testing_utils import (
    BORDERS,
    KERNEL_DTYPES,
    LAYOUTS,
    NORMALIZATIONS,
    Sizes,
    check_against_reference,
    make_tensor,
)

from sapa_mm import ops

pytestmark = pytest.mark.usefixtures('poisoned_memory')

#: Cases a test: few enough to find a case, many enough to keep the report short.
CHUNK = 10
#: Most output pixels of a batch times the window's side: the interpreter takes milliseconds each.
MAX_WORK = 600
MAX_RATIO = 8
MAX_LOW = 12
NAMES = {
    'point_affiliation': ('query', 'key', 'value'),
    'local_similarity': ('query', 'key'),
    'assemble': ('weights', 'value'),
    'embed': ('x', 'low'),  # what is of one resolution lies in memory alike
}


class Case(NamedTuple):
    """One call.

    The last of the layouts is that of the gradient; ``mean`` is that of query and key, or of x.
    """

    seed: int
    operator: str
    dtype: torch.dtype
    sizes: Sizes
    layouts: tuple[str, ...]
    mean: float
    options: dict[str, object]


def draw_axis(draw: random.Random, low: int, kind: str, ratio: int) -> int:
    """Output pixels of an axis: a multiple, one less, or anything up to the largest ratio."""
    if kind == 'any':
        return draw.randint(low, MAX_RATIO * low)
    return max(low, ratio * low - (kind == 'odd'))


def draw_sizes(draw: random.Random, kernel_size: int, d: int, c: int, least: int) -> Sizes:
    """Sizes that are quick: large ratios come with small maps."""
    while True:
        kinds = draw.choices(['integer', 'odd', 'any'], [2, 1, 1], k=2)
        ratios = [draw.randint(1, MAX_RATIO) for _ in range(2)]
        if draw.random() < 0.7:
            kinds[1], ratios[1] = kinds[0], ratios[0]
        low = [draw.randint(least, max(least, MAX_LOW + 1 - ratio)) for ratio in ratios]
        high = [draw_axis(draw, *axis) for axis in zip(low, kinds, ratios, strict=True)]
        sizes = Sizes(draw.randint(1, 3), d, c, tuple(low), tuple(high))
        if sizes.n * high[0] * high[1] * max(kernel_size, 3) <= MAX_WORK:
            return sizes


def draw_case(seed: int) -> Case:
    draw = random.Random(seed)
    operator = draw.choices(list(NAMES), [4, 2, 2, 1])[0]
    dtype = draw.choice(KERNEL_DTYPES)
    if operator == 'embed':
        return draw_embedding(draw, seed, dtype)
    options = {'kernel_size': draw.choice([1, 3, 5, 7, 9])}
    d, c = draw.randint(1, 40), draw.randint(1, 40)
    if draw.random() < 0.1:
        c = draw.randint(41, 150)
    least, mean = 1, 0.0
    if operator != 'assemble':
        options['temperature'] = draw.choice([0.5, 1.0, 2.0, 3.7])
    if operator == 'point_affiliation':
        options['normalization'] = draw.choice(NORMALIZATIONS)
        options['border'] = draw.choice(BORDERS)
        if options['normalization'] == 'relu':
            # A window of few positive scores is ill-conditioned, and with one embedding channel
            # the weights do not depend on the query's size: nothing there to compare.
            d, least, mean = max(d, 4), 3, 0.75
            options['kernel_size'] = max(options['kernel_size'], 3)
    if operator == 'assemble':
        options['groups'] = draw.choice([1, 1, 2, 3, 4])
        c = max(1, c // options['groups']) * options['groups']
    sizes = draw_sizes(draw, options['kernel_size'], d, c, least)
    layouts = [draw.choice(LAYOUTS) for _ in range(len(NAMES[operator]) + 1)]
    if sizes.low[1] < 3 or options.get('normalization') == 'relu':
        # Rows that are alike leave too few different positions: gradients cancel to about zero.
        layouts = [name.replace('expanded', 'transposed') for name in layouts]
    return Case(seed, operator, dtype, sizes, tuple(layouts), mean, options)


def draw_embedding(draw: random.Random, seed: int, dtype: torch.dtype) -> Case:
    """A call of `embed` with any of its options.

    Two channels or one are plus or minus 1 once they are standardized, and a gate of one value is a
    single sum: such gradients cancel to about zero.
    """
    d, c = draw.choice([1, 7, 32, 40, 70]), draw.randint(4, 150)
    sizes = draw_sizes(draw, 1, d, c, least=2)
    projected, normalize = draw.choice([(True, True), (True, True), (True, False), (False, True)])
    names = [('weight', 'bias')[: draw.randint(1, 2)]] if projected else []
    if normalize:
        names.append(draw.choice([(), ('norm_weight',), ('norm_weight', 'norm_bias')]))
    names.append(draw.choice([(), ('addend',), ('gate', 'addend')]))
    options = dict(
        tensors=tuple(name for group in names for name in group),
        normalize=normalize,
        eps=draw.choice([1e-5, 1e-2]),
        parameter_dtype=draw.choice([dtype, torch.float32]),
    )
    layouts = tuple(draw.choice(LAYOUTS) for _ in range(3))
    return Case(seed, 'embed', dtype, sizes, layouts, draw.choice([0.0, 0.5, 3.0]), options)


def check_embedding(case: Case, device: str) -> None:
    layout, low_layout, grad_layout = case.layouts
    with ops.backend('triton'):
        testing_embedding.check_case(
            testing_embedding.Case(
                str(case.seed),
                **case.sizes._asdict(),
                **case.options,
                dtype=case.dtype,
                layout=layout,
                low_layout=low_layout,
                grad_layout=grad_layout,
                mean=case.mean,
            ),
            device,
        )


def make_inputs(case: Case, device: str) -> list[torch.Tensor]:
    n, d, c, low, high = case.sizes
    channels = {
        'query': (d, high),
        'key': (d, low),
        'value': (c, low),
        'weights': (case.options.get('groups', 1) * case.options['kernel_size'] ** 2, high),
    }
    inputs = []
    for name, layout in zip(NAMES[case.operator], case.layouts, strict=False):
        width, size = channels[name]
        embedding = {'scale': d**-0.25, 'mean': case.mean} if name in ('query', 'key') else {}
        inputs.append(
            make_tensor(
                n, width, *size, dtype=case.dtype, layout=layout, device=device, **embedding
            )
        )
    return inputs


def check_case(case: Case, device: str) -> None:
    torch.manual_seed(case.seed)
    if case.operator == 'embed':
        check_embedding(case, device)
        return
    inputs = make_inputs(case, device)
    # All positions are one pixel: the gradients of normalized weights cancel to about zero.
    one_pixel = case.options['kernel_size'] == 1 or (
        case.sizes.low == (1, 1) and case.options.get('border') != 'zero'
    )
    cancels = one_pixel and case.options.get('normalization', 'none') != 'none'
    with ops.backend('triton'):
        check_against_reference(
            getattr(ops, case.operator),
            getattr(ops.reference, case.operator),
            inputs,
            NAMES[case.operator],
            floor=float(cancels),
            grad_layout=case.layouts[-1],
            **case.options,
        )


def pytest_generate_tests(metafunc):
    count = metafunc.config.getoption('kernel_cases')
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    metafunc.parametrize('chunk', chunks, ids=lambda chunk: f'{chunk[0]}-{chunk[-1]}')


def test_random_cases(chunk, kernel_device):
    failures = []
    for seed in chunk:
        case = draw_case(seed)
        try:
            check_case(case, kernel_device)
        except Exception as error:  # the other cases of the chunk are wanted as well
            failures.append((case, error))
    if failures:
        text = '\n'.join(f'{case}: {type(error).__name__}: {error}' for case, error in failures)
        raise AssertionError(text) from failures[0][1]
