"""Bad input is refused before any work, with a message that names the argument."""

import re

import pytest
import torch

from sapa_mm.ops import assemble, local_similarity, point_affiliation

ERRORS = (TypeError, ValueError)


def good_affiliation():
    return {
        'query': torch.randn(2, 4, 6, 8),
        'key': torch.randn(2, 4, 3, 4),
        'value': torch.randn(2, 5, 3, 4),
    }


def good_similarity():
    arguments = good_affiliation()
    del arguments['value']
    return arguments


def good_assembly():
    return {'weights': torch.randn(2, 25, 6, 8), 'value': torch.randn(2, 5, 3, 4)}


OPS = {
    'point_affiliation': (point_affiliation, good_affiliation),
    'local_similarity': (local_similarity, good_similarity),
    'assemble': (assemble, good_assembly),
}
TENSORS = [(op, argument) for op, (_, arguments) in OPS.items() for argument in arguments()]

each_tensor = pytest.mark.parametrize(('op', 'argument'), TENSORS)
each_op = pytest.mark.parametrize('op', OPS)


def check_refused(op, *named, error=ERRORS, **changes):
    """Change a good call, and expect an error whose message holds every one of ``named``."""
    function, arguments = OPS[op]
    with pytest.raises(error) as info:
        function(**(arguments() | changes))
    for name in named:
        assert re.search(rf'\b{name}\b', str(info.value)), (name, str(info.value))


@each_op
def test_the_unchanged_call_is_good(op):
    function, arguments = OPS[op]
    assert function(**arguments()).shape[-2:] == (6, 8)


@each_tensor
@pytest.mark.parametrize('wrong', [None, 3, 'tensor', [[1.0]], torch.zeros(1).numpy()])
def test_not_a_tensor(op, argument, wrong):
    check_refused(op, argument, type(wrong).__name__, error=TypeError, **{argument: wrong})


@each_tensor
def test_wrong_rank(op, argument):
    good = OPS[op][1]()[argument]
    for wrong in (good[0], good[None], good[0, 0, 0, 0]):
        check_refused(op, argument, **{argument: wrong})


@each_tensor
@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_not_floating_point(op, argument, dtype):
    arguments = OPS[op][1]()
    check_refused(op, argument, **{argument: arguments[argument].to(dtype)})
    # all of them alike, so that only the kind of number is wrong
    alike = {name: tensor.to(dtype) for name, tensor in arguments.items()}
    check_refused(op, '|'.join(arguments), **alike)


@each_tensor
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16], ids=str)
def test_mixed_dtypes(op, argument, dtype):
    wrong = OPS[op][1]()[argument].to(dtype)
    check_refused(op, argument, r'float(64|16)', 'float32', **{argument: wrong})


@each_tensor
def test_mixed_devices(op, argument):
    wrong = OPS[op][1]()[argument].to('meta')
    check_refused(op, argument, 'meta', 'cpu', **{argument: wrong})


@each_tensor
@pytest.mark.parametrize('axis', range(4))
def test_empty(op, argument, axis):
    shape = list(OPS[op][1]()[argument].shape)
    shape[axis] = 0
    check_refused(op, argument, error=ValueError, **{argument: torch.zeros(shape)})


@each_op
@pytest.mark.parametrize('axes', [(0,), (1,), (2, 3)])
def test_all_empty(op, axes):
    """Sizes that agree, so that nothing but the emptiness is wrong."""
    changes = {}
    for name, tensor in OPS[op][1]().items():
        shape = [0 if axis in axes else size for axis, size in enumerate(tensor.shape)]
        changes[name] = torch.zeros(shape)
    check_refused(op, '|'.join(changes), error=ValueError, **changes)


@each_tensor
def test_batches_differ(op, argument):
    check_refused(op, argument, error=ValueError, **{argument: OPS[op][1]()[argument][:1]})


@pytest.mark.parametrize('op', ['point_affiliation', 'local_similarity'])
@pytest.mark.parametrize('argument', ['query', 'key'])
def test_embedding_channels_differ(op, argument):
    wrong = OPS[op][1]()[argument][:, :3]
    check_refused(op, 'query', 'key', '3', '4', error=ValueError, **{argument: wrong})


@pytest.mark.parametrize('size', [(2, 4), (3, 3), (4, 3), (6, 8)])
def test_value_has_another_size_than_key(size):
    value = torch.randn(2, 5, *size)
    check_refused('point_affiliation', 'value', 'key', error=ValueError, value=value)


@each_op
@pytest.mark.parametrize('size', [(2, 8), (6, 3), (2, 3)])
def test_guide_smaller_than_the_map(op, size):
    argument = 'weights' if op == 'assemble' else 'query'
    good = OPS[op][1]()[argument]
    wrong = good[:, :, : size[0], : size[1]]
    check_refused(op, argument, error=ValueError, **{argument: wrong})


@each_op
@pytest.mark.parametrize('wrong', [0, -1, -3, 2, 4, 3.0, 5.5, '5', None, True, (3, 3)])
def test_kernel_size(op, wrong):
    check_refused(op, 'kernel_size', kernel_size=wrong)


@pytest.mark.parametrize('op', ['point_affiliation', 'local_similarity'])
@pytest.mark.parametrize('wrong', [0, 0.0, -1, -0.5, float('nan'), '1', None])
def test_temperature(op, wrong):
    check_refused(op, 'temperature', temperature=wrong)


@pytest.mark.parametrize('wrong', ['nonsense', 'Softmax', '', None, 3])
def test_normalization(wrong):
    choices = ('softmax', 'sigmoid', 'relu', 'softplus', 'none')
    check_refused('point_affiliation', 'normalization', *choices, normalization=wrong)


@pytest.mark.parametrize('wrong', ['nonsense', 'zeros', '', None, 3])
def test_border(wrong):
    choices = ('zero', 'mask', 'replicate')
    check_refused('point_affiliation', 'border', *choices, border=wrong)


@pytest.mark.parametrize('channels', [9, 24, 26, 1])
def test_weights_do_not_fill_the_window(channels):
    wrong = torch.randn(2, channels, 6, 8)
    check_refused('assemble', 'weights', '25', str(channels), error=ValueError, weights=wrong)


def test_weights_do_not_fit_a_given_kernel_size():
    check_refused('assemble', 'weights', '9', '25', error=ValueError, kernel_size=3)


@pytest.mark.parametrize('wrong', [0, -1, 2, 3, 10, 1.0, '1', None, True])
def test_groups(wrong):
    check_refused('assemble', 'groups', groups=wrong)


def test_weights_are_those_of_fewer_groups():
    check_refused('assemble', 'weights', '125', '25', error=ValueError, groups=5)


@each_op
def test_mixed_dtypes_are_refused_after_autocast(op):
    """Autocast lets dtypes mix; the leave ends with its block."""
    function, arguments = OPS[op]
    mixed = arguments()
    name = next(iter(mixed))
    mixed[name] = mixed[name].bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        assert function(**mixed).isfinite().all()
    check_refused(op, name, 'bfloat16', **mixed)
