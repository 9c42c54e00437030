import math

import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from sapa_mm.tools.benchmark import measure
from sapa_mm.tools.benchmark.candidates import candidates, default_names
from sapa_mm.tools.benchmark.options import parse
from sapa_mm.tools.benchmark.shapes import Shape, preset
from sapa_mm.tools.benchmark.stopwatch import Stopwatch, cache_bytes

CPU = torch.device('cpu')


def test_memory_is_at_most_an_eighth_of_unfolds():
    shape = Shape('medium', 1, 24, 24, 128, 16)
    tensors = measure.draw(shape, {'query', 'key', 'value'}, torch.float32, 'nchw', CPU)
    contenders = {c.name: c for c in candidates(shape, CPU, torch.float32, 'off')}
    ours, unfold = contenders['sapa_mm'], contenders['unfold+einsum']
    for grad in (None, tensors['out']):
        found = [measure.memory(c, tensors, grad) for c in (ours, unfold)]
        extra = [peak - results for peak, results in found]
        assert 0 < 8 * extra[0] <= extra[1]


def test_figures_are_medians_of_the_rounds():
    times = [(0.1, 0.01), (0.4, 0.03), (0.2, 0.02)]
    ours = [(0.1, 0), (0.1, 0), (0.4, 0)]
    figures = measure.summarize(
        (3 * 2**20, 2**21), 2**19, 10**9, times, {'sapa_mm': ours}, [1e10, 5e9, 4e10]
    )
    assert figures.extra_bytes == 2**20
    assert figures.peak_bytes == 3 * 2**20
    assert figures.peak_over_bilinear == 6
    assert figures.ms == 200
    assert figures.ms_min_max == (100, 400)
    assert figures.launch_ms == 20
    assert figures.time_over_sapa_mm == 1  # of 1, 4 and 0.5
    assert figures.time_over_bilinear is None
    assert figures.least_bytes == 10**9
    assert figures.gb_per_s == 5
    assert figures.copy_gb_per_s == 10
    assert figures.of_copy == pytest.approx(0.5)  # of 1, 0.5 and 0.125


def test_copy_bandwidth_counts_both_directions(monkeypatch):
    watch = Stopwatch(CPU)
    assert watch.source.nbytes >= 4 * cache_bytes(CPU)

    def seconds(call):
        call()
        return 0.5, 0.5

    monkeypatch.setattr(watch, 'seconds', seconds)
    assert not torch.equal(watch.source, watch.target)
    assert watch.copy_bandwidth() == 4 * watch.source.nbytes
    assert torch.equal(watch.source, watch.target)


def test_fresh_numbers():
    shape = Shape('tiny', 2, 20, 20, 64, 16)
    names = {'query', 'key', 'value', 'guide', 'weights'}
    tensors = measure.draw(shape, names, torch.float16, 'channels_last', CPU)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in tensors.values())
    scores = (tensors['query'][:, :, ::2, ::2] * tensors['key']).sum(1)
    assert 0.8 < scores.float().std() < 1.2
    assert tensors['weights'].min() > 0
    torch.testing.assert_close(
        tensors['weights'].float().sum(1), torch.ones(2, 40, 40), atol=2e-3, rtol=0
    )
    before = {name: x.clone() for name, x in tensors.items()}
    measure.refill(tensors)
    assert not any(torch.equal(x, before[name]) for name, x in tensors.items())


def test_segformer_is_the_head():
    # Another test may have left mmdet's.
    with DefaultScope.overwrite_default_scope('mmseg'):
        head = MODELS.build(
            dict(
                type='GuidedSegformerHead',
                upsample_cfg=dict(type='nearest'),
                in_channels=[8, 12, 16, 20],
                in_index=[0, 1, 2, 3],
                channels=256,
                num_classes=3,
                norm_cfg=dict(type='BN'),
            )
        ).eval()
    found = {}
    for name, upsampler in head.upsamplers.items():

        def note(module, inputs, output, name=name):
            x, guide = inputs
            found[name] = (*x.shape[1:], *guide.shape[1:], *output.shape[1:])

        upsampler.register_forward_hook(note)
    levels = [(8, 4), (12, 8), (16, 16), (20, 32)]
    with torch.no_grad():  # the levels of a 512 x 512 image
        head([torch.zeros(1, c, 512 // s, 512 // s) for c, s in levels])
    assert len(found) == 6
    shapes = preset('segformer', CPU)
    presets = {}
    for shape in shapes:
        assert (shape.batch, shape.embed, shape.kernel_size) == (16, 32, 5)
        sizes = shape.sizes()
        for name in shape.steps:
            presets[name] = sizes['value'][1:] + sizes['guide'][1:] + sizes['out'][1:]
    assert presets == found


def test_other_presets():
    sizes = [shape.sizes() for shape in preset('fpn', CPU)]
    assert [s['value'][1:] for s in sizes] == [
        (256, 200, 304),
        (256, 100, 152),
        (256, 50, 76),
        (256, 25, 38),
    ]
    assert sizes[0]['out'][1:] == (256, 400, 608)
    (dysample,) = preset('dysample', CPU)
    assert dysample.sizes()['value'] == (1, 256, 120, 120)
    assert dysample.sizes()['out'] == (1, 256, 240, 240)
    (large,) = preset('large', CPU)
    assert 2 * math.prod(large.sizes()['out']) >= 4 * cache_bytes(CPU)
    (small,) = preset('small', CPU)
    assert small.sizes()['query'] == (2, 32, 128, 128)
    assert small.sizes()['value'] == (2, 256, 64, 64)
    found = [(s.name, s.batch, s.height, s.width) for s in preset('gpu', CPU)]
    assert found == [
        ('dysample', 1, 120, 120),
        ('fpn', 2, 200, 304),
        ('sf64', 16, 64, 64),
        ('large', 8, 256, 256),
    ]
    options, shapes = parse(['--device', 'cpu'])
    assert shapes == [small]
    assert 'unfold+einsum' in options.candidates
    options, shapes = parse(['--device', 'cpu', '--shapes', 'gpu'])
    assert [str(s).partition(' value')[2] for s in shapes] == [
        f' {size}, K 5'
        for size in ((1, 256, 120, 120), (2, 256, 200, 304), (16, 256, 64, 64), (8, 256, 256, 256))
    ]
    assert all((s.embed, s.ratio) == (32, 2) for s in shapes)
    assert options.dtypes == ['float16']
    assert options.candidates == default_names('gpu')
    asked = ['--dtypes', 'bfloat16', '--candidates', 'bilinear', 'sapa-g-module', 'sapa_mm']
    options, _ = parse(['--device', 'cpu', '--shapes', 'gpu', *asked])
    assert options.dtypes == ['bfloat16']
    assert options.candidates == ('sapa_mm', 'bilinear', 'SAPA-G module')
    _, shapes = parse(['--device', 'cpu', '--shapes', 'dysample', 'segformer'])
    assert [shape.name.split()[0] for shape in shapes] == ['dysample', *['segformer'] * 3]
