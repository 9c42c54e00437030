import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import image as mpimg
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from sapa_mm.tools.benchmark import candidates as contest
from sapa_mm.tools.benchmark import command as benchmark
from sapa_mm.tools.benchmark import report

TOOLS = Path(__file__).resolve().parents[2] / 'tools'

CPU = torch.device('cpu')
TINY = '--size 5 6 --channels 32 --embed 16 --rounds 2'.split()
SMALL = contest.Shape('small', 2, 64, 64)
BLOCKED = ('mmengine', 'mmcv', 'mmseg', 'mmdet', 'matplotlib', 'rich', 'numpy', 'triton')


def draw(shape, dtype=torch.float32, layout='nchw', device=CPU):
    names = {'query', 'key', 'value', 'guide', 'weights'}
    return benchmark.draw(shape, names, dtype, layout, device)


def candidate(name, shape, dtype=torch.float32, compilation='off'):
    found = {c.name: c for c in contest.candidates(shape, CPU, dtype, compilation)}
    return found[name]


def test_measures_and_writes(device, tmp_path, capsys):
    out = tmp_path / 'figures.json'
    options = [*TINY, '--dtypes', 'float32', 'bfloat16', '--device', device]  # a GPU compiles
    assert benchmark.main([*options, '--json', str(out)]) == 0
    printed = capsys.readouterr()
    record = json.loads(out.read_text())
    environment = record['environment']
    assert environment['torch'] == torch.__version__
    assert environment['float32_matmul_precision'] == torch.get_float32_matmul_precision()
    assert environment['autotune'] == os.environ.get('SAPA_MM_AUTOTUNE', '1')
    assert f'torch {torch.__version__}, triton {environment["triton"]}' in printed.out
    assert record['shapes'] == [
        dict(name='own', batch=2, height=5, width=6, channels=32, embed=16, ratio=2)
        | dict(kernel_size=5, steps=[])
    ]
    assert 'own: query (2, 16, 10, 12), key (2, 16, 5, 6), value (2, 32, 5, 6), K 5' in printed.out
    assert 'First calls of sapa_mm (compilation, tuning): float32 nchw ' in printed.out
    assert printed.err.count('own bfloat16 channels_last') == 1
    rows = {(r['dtype'], r['layout'], r['candidate']): r for r in record['rows']}
    assert len(rows) == len(record['rows']) == (28 if device == 'cpu' else 32)
    for (dtype, layout, name), row in rows.items():
        assert f'| {dtype} | {layout} | {name} |' in printed.out
        for label in ('forward', 'forward+backward'):
            if name in ('compiled unfold', 'flex_attention') and device == 'cpu':
                expected = {'not_timed': 'only with --compile', 'refused': False}
                assert row[label] == expected
            elif name not in ('flex_attention', 'mmcv CARAFE'):
                assert row['first_call_s'][label] > 0
                assert row[label]['ms'] > 0
                low, high = row[label]['ms_min_max']
                assert low <= row[label]['ms'] <= high
                figures = row[label]
                assert math.isclose(
                    figures['gb_per_s'], figures['least_bytes'] / figures['ms'] / 1e6
                )
                assert 0 < figures['of_copy'] < 10
        if name == 'sapa_mm':
            assert row['forward']['time_over_sapa_mm'] == 1
        if name == 'bilinear':
            assert row['forward+backward']['time_over_bilinear'] == 1
        if name in ('sapa_mm', 'unfold+einsum', 'SAPA-B module'):
            assert 0 < row['error'] < benchmark.TOLERANCE[dtype]
    if device == 'cpu':
        reason = 'not timed: mmcv has it for GPUs only'
        assert f'| bfloat16 | nchw | mmcv CARAFE | {reason} | - | - | - | - | - |' in printed.out


def test_torch_is_enough():
    code = (
        f'import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n'
        'from sapa_mm.tools.cli import run\nsys.exit(run("benchmark"))'
    )
    command = [sys.executable, '-c', code, *TINY, '--device', 'cpu', '--layouts', 'nchw']
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert '| float32 | nchw | unfold+einsum | ' in result.stdout
    # The one line that says what is missing; all others are there.
    module = [line for line in result.stdout.splitlines() if '| SAPA-B module |' in line]
    assert len(module) == 1
    assert 'not timed: ModuleNotFoundError: import of mmengine halted' in module[0]
    plot = subprocess.run([*command, '--plot', 'x.png'], capture_output=True, text=True)
    assert plot.returncode == 2
    assert 'argument --plot: needs matplotlib' in plot.stderr
    assert plot.stdout == ''


@pytest.mark.parametrize('size', [(2, 5, 9, 2, 5), (1, 4, 11, 3, 3), (2, 9, 4, 1, 7)])
@pytest.mark.parametrize('name', ['sapa_mm', 'unfold+einsum', 'compiled unfold', 'SAPA-B module'])
@pytest.mark.parametrize('layout', benchmark.LAYOUTS)
def test_all_compute_the_same(name, size, layout):
    n, h, w, ratio, kernel_size = size
    shape = contest.Shape('tiny', n, h, w, 20, 6, ratio, kernel_size)
    tensors = draw(shape, layout=layout)
    check = contest.Check(shape, tensors)
    # What is compiled here is its Python: compiling takes a minute and is torch's affair.
    with torch.compiler.set_stance('force_eager'):
        tested = candidate(name, shape, compilation='default')
        got = tested.run(tensors, check.grad)
    assert len(got) == 1 + len(tested.inputs) + len(tested.parameters)
    assert check.error(tested, got) < 5e-6
    if tested.inputs == ('query', 'key', 'value'):
        ours = contest.ops.point_affiliation(
            *(tensors[i] for i in tested.inputs), kernel_size=kernel_size
        )
        torch.testing.assert_close(got[0], ours, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings('ignore:flex_attention called without')
@pytest.mark.parametrize('size', [(2, 5, 9, 2, 5), (1, 4, 11, 3, 3), (2, 9, 20, 1, 7)])
@pytest.mark.parametrize('layout', benchmark.LAYOUTS)
def test_flex_attention_computes_the_same(size, layout):
    n, h, w, ratio, kernel_size = size
    shape = contest.Shape('tiny', n, h, w, 20, 6, ratio, kernel_size)
    tensors = draw(shape, layout=layout)
    inputs = [tensors[name] for name in ('query', 'key', 'value')]
    flex = contest.flex_affiliation(shape, CPU, lambda function: function)
    got = flex(*inputs)
    assert got.is_contiguous(memory_format=benchmark.LAYOUTS[layout])
    expected = contest.reference.point_affiliation(
        *(x.double() for x in inputs), kernel_size=kernel_size
    )
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match='backward on CPU'):
        flex(*(x.requires_grad_() for x in inputs))


def test_flex_attention_visits_few_blocks():
    from torch.nn.attention import flex_attention as module

    shape = contest.Shape('fpn', 1, 24, 48, 16, 16)
    masks = []
    original = module.BlockMask.from_kv_blocks

    def record(*args, **kwargs):
        masks.append(original(*args, **kwargs))
        return masks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.BlockMask, 'from_kv_blocks', record)
        contest.flex_affiliation(shape, CPU, lambda function: function)
    visited = masks[0].kv_num_blocks[0, 0]
    assert len(visited) == 24 * 48 // 32  # one tile of 4 x 8 cells a block of 128 queries
    # Its keys, 8 x 12, lie in at most 2 x 2 tiles of 8 x 16.
    assert visited.min() >= 1
    assert visited.max() == 4


def test_strips_of_the_reference_are_the_reference(monkeypatch):
    monkeypatch.setattr(contest, 'REFERENCE_PIXELS', 60)  # strips of one to three rows
    shape = contest.Shape('tiny', 3, 11, 5, 20, 4, 2, 5)
    tensors = draw(shape, torch.float64)
    check = contest.Check(shape, tensors)
    assert check.images.tolist() == [0, 2]
    assert check.channels.tolist() == [*range(8), *range(12, 20)]
    ours = candidate('sapa_mm', shape)
    assert shape.height > 60 // (2 * 10 * 2)
    leaves = [tensors[name].clone().requires_grad_() for name in ours.inputs]
    out = contest.reference.point_affiliation(*leaves, kernel_size=5)
    grads = torch.autograd.grad(out, leaves, check.grad)
    strips = check.reference(ours)
    torch.testing.assert_close(strips[0], out[check.place].detach())
    for got, expected in zip(strips[1:], grads, strict=True):
        torch.testing.assert_close(got, expected[check.images])


def spoil(where):
    """Ours, a thousandth off at one place of the output or (by its name) of a gradient."""

    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, place):
            ctx.place = place
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad[ctx.place] *= 1.001
            return grad, None

    def function(query, key, value):
        name, place = where
        maps = {'query': query, 'key': key, 'value': value}
        if name in maps:
            maps[name] = Spoiled.apply(maps[name], place)
        out = contest.ops.point_affiliation(*maps.values(), kernel_size=3)
        if name == 'out':
            factor = torch.ones_like(out)
            factor[place] = 1.001
            out = out * factor
        return out

    return function


@pytest.mark.parametrize(
    'where',
    [
        ('out', (slice(None), slice(None), slice(0, 1))),
        ('out', (slice(None), slice(None), slice(None), slice(-1, None))),
        ('out', (slice(None), slice(-1, None))),
        ('out', slice(-1, None)),
        ('query', (slice(None), slice(None), slice(-1, None))),
        ('key', (slice(None), slice(None), slice(0, 1))),
        ('value', (slice(None), slice(-1, None))),
    ],
)
def test_a_thousandth_at_a_border_is_noticed(where):
    shape = contest.Shape('tiny', 2, 6, 7, 20, 4, 2, 3)
    tensors = draw(shape)
    check = contest.Check(shape, tensors)
    exact = candidate('sapa_mm', shape).exact
    for spoiled in (False, True):
        function = spoil(where if spoiled else ('nothing', None))
        tested = contest.Candidate('tested', function, exact=exact)
        error = check.error(tested, tested.run(tensors, check.grad))
        assert (error > benchmark.TOLERANCE['float32']) is spoiled


def test_nan_fails_whatever_comes_first():
    shape = contest.Shape('tiny', 1, 3, 4, 5, 4, 2, 3)
    tensors = draw(shape)
    check = contest.Check(shape, tensors)
    ours = candidate('sapa_mm', shape)
    for i in range(4):
        got = ours.run(tensors, check.grad)
        got[i][0, 0, 1, 1] = torch.nan
        assert math.isnan(check.error(ours, got))


def add_candidates(monkeypatch, *added):
    def more(shape, *args):
        found = contest.candidates(shape, *args)
        exact = found[0].exact
        return [*found, *(contest.Candidate(n, f, exact=exact) for n, f in added)]

    monkeypatch.setattr(benchmark, 'candidates', more)


def test_what_is_wrong_is_not_timed(monkeypatch, tmp_path, capsys):
    def wrong(query, key, value):
        return contest.ops.point_affiliation(query, 1.001 * key, value)

    class WrongGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.nan

    def wrong_backward(query, key, value):
        return contest.ops.point_affiliation(query, key, WrongGradient.apply(value))

    add_candidates(monkeypatch, ('wrong', wrong), ('wrong backward', wrong_backward))
    out, plot = tmp_path / 'figures.json', tmp_path / 'plot.png'
    options = [*TINY, '--device', 'cpu', '--layouts', 'nchw', '--json', str(out)]
    assert benchmark.main([*options, '--plot', str(plot)]) == 1
    printed = capsys.readouterr()
    assert 'wrong is not timed: its error ' in printed.err
    assert 'exceeds 1e-05 (own, float32, nchw)' in printed.err
    assert 'wrong backward is not timed: its error nan exceeds' in printed.err
    rows = {row['candidate']: row for row in json.loads(out.read_text())['rows']}
    for name in ('wrong', 'wrong backward'):
        for label in contest.PASSES:
            assert rows[name][label].keys() == {'not_timed', 'refused'}
            assert rows[name][label]['refused'] is True
        assert f'| float32 | nchw | {name} | not timed: its error ' in printed.out
    assert rows['SAPA-B module']['forward']['ms'] > 0  # the others are
    assert plot.stat().st_size > 0


def test_what_cannot_run_says_why(monkeypatch, tmp_path, capsys):
    def broken(query, key, value):
        try:
            raise KeyError('a cause')
        except KeyError as cause:
            raise RuntimeError('an error\nof two lines | with a bar') from cause

    def huge(query, key, value):
        return torch.empty(2**48)

    def forward_only(query, key, value):
        if query.requires_grad:
            raise NotImplementedError('no | backward\nat all')
        return contest.ops.point_affiliation(query, key, value)

    calls = []

    def breaks_when_timed(query, key, value):
        calls.append(0)
        if len(calls) > 3:
            raise ValueError('late')
        return contest.ops.point_affiliation(query, key, value)

    added = [('broken', broken), ('huge', huge), ('forward only', forward_only)]
    add_candidates(monkeypatch, *added, ('late', breaks_when_timed))
    out = tmp_path / 'figures.json'
    options = [*TINY, '--device', 'cpu', '--layouts', 'nchw', '--json', str(out)]
    assert benchmark.main(options) == 0  # ours is right and was timed
    rows = {row['candidate']: row for row in json.loads(out.read_text())['rows']}
    assert rows['broken']['forward']['not_timed'] == "KeyError: 'a cause'"
    assert rows['huge']['forward+backward']['not_timed'] == 'out of memory'
    assert rows['forward only']['forward']['ms'] > 0
    assert rows['forward only']['first_call_s'].keys() == {'forward'}
    reason = 'NotImplementedError: no / backward'
    assert rows['forward only']['forward+backward'] == {'not_timed': reason, 'refused': False}
    assert f' | not timed: {reason} | - | - |' in capsys.readouterr().out
    assert rows['late']['forward'] == {'not_timed': 'ValueError: late', 'refused': False}


def test_ours_that_cannot_run_is_a_failure(monkeypatch, capsys):
    def without_ours(*args):
        _, *others = contest.candidates(*args)
        return [contest.Candidate('sapa_mm', reason='none here'), *others]

    monkeypatch.setattr(benchmark, 'candidates', without_ours)
    assert benchmark.main([*TINY, '--device', 'cpu', '--layouts', 'nchw']) == 1
    printed = capsys.readouterr()
    assert 'sapa_mm is not timed: none here (own, float32, nchw)' in printed.err
    unfold = next(line for line in printed.out.splitlines() if '| unfold+einsum |' in line)
    assert ' ms (-x), ' in unfold


def test_memory_is_at_most_an_eighth_of_unfolds():
    shape = contest.Shape('medium', 1, 24, 24, 128, 16)
    tensors = draw(shape)
    ours, unfold = (candidate(name, shape) for name in ('sapa_mm', 'unfold+einsum'))
    for grad in (None, tensors['out']):
        extra = [benchmark.extra_memory(c, tensors, grad) for c in (ours, unfold)]
        assert 0 < 8 * extra[0] <= extra[1]


@pytest.mark.parametrize(
    ('name', 'forward', 'both'),
    [
        # Query 2,097,152, key 524,288, value 4,194,304, output 16,777,216 bytes in half precision;
        # guide like the output, weights 1,638,400.
        ('sapa_mm', 23_592_960, 54_001_664),
        ('unfold+einsum', 23_592_960, 54_001_664),
        ('bilinear', 20_971_520, 41_943_040),
        ('SAPA-B module', 37_748_736, 96_468_992),
        ('mmcv CARAFE', 22_609_920, 51_052_544),
    ],
)
def test_least_bytes(name, forward, both):
    tested = candidate(name, SMALL)
    if name == 'mmcv CARAFE':  # which runs on GPUs alone
        tested = contest.Candidate(name, inputs=('value', 'weights'))
    assert tested.least_bytes(SMALL, 2, 'forward') == forward
    assert tested.least_bytes(SMALL, 2, 'forward+backward') == both
    assert tested.least_bytes(SMALL, 4, 'forward') == 2 * forward


def test_figures_are_medians_of_the_rounds():
    times = [(0.1, 0.01), (0.4, 0.03), (0.2, 0.02)]
    ours = [(0.1, 0), (0.1, 0), (0.4, 0)]
    figures = report.summarize(10**9, times, {'sapa_mm': ours}, [1e10, 5e9, 4e10])
    assert figures['ms'] == 200
    assert figures['ms_min_max'] == [100, 400]
    assert figures['launch_ms'] == 20
    assert figures['time_over_sapa_mm'] == 1  # of 1, 4 and 0.5
    assert figures['time_over_bilinear'] is None
    assert figures['least_bytes'] == 10**9
    assert figures['gb_per_s'] == 5
    assert figures['copy_gb_per_s'] == 10
    assert figures['of_copy'] == pytest.approx(0.5)  # of 1, 0.5 and 0.125


def test_copy_bandwidth_counts_both_directions(monkeypatch):
    watch = benchmark.Stopwatch(CPU)
    assert watch.source.nbytes >= 4 * benchmark.cache_bytes(CPU)

    def seconds(call):
        call()
        return 0.5, 0.5

    monkeypatch.setattr(watch, 'seconds', seconds)
    assert not torch.equal(watch.source, watch.target)
    assert watch.copy_bandwidth() == 4 * watch.source.nbytes
    assert torch.equal(watch.source, watch.target)


def test_fresh_numbers():
    shape = contest.Shape('tiny', 2, 20, 20, 64, 16)
    tensors = draw(shape, torch.float16, 'channels_last')
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in tensors.values())
    scores = (tensors['query'][:, :, ::2, ::2] * tensors['key']).sum(1)
    assert 0.8 < scores.float().std() < 1.2
    assert tensors['weights'].min() > 0
    torch.testing.assert_close(
        tensors['weights'].float().sum(1), torch.ones(2, 40, 40), atol=2e-3, rtol=0
    )
    before = {name: x.clone() for name, x in tensors.items()}
    benchmark.refill(tensors)
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
    shapes = benchmark.preset('segformer', CPU)
    presets = {}
    for shape in shapes:
        assert (shape.batch, shape.embed, shape.kernel_size) == (16, 32, 5)
        sizes = shape.sizes()
        for name in shape.steps:
            presets[name] = sizes['value'][1:] + sizes['guide'][1:] + sizes['out'][1:]
    assert presets == found


def test_other_presets():
    sizes = [shape.sizes() for shape in benchmark.preset('fpn', CPU)]
    assert [s['value'][1:] for s in sizes] == [
        (256, 200, 304),
        (256, 100, 152),
        (256, 50, 76),
        (256, 25, 38),
    ]
    assert sizes[0]['out'][1:] == (256, 400, 608)
    (dysample,) = benchmark.preset('dysample', CPU)
    assert dysample.sizes()['value'] == (1, 256, 120, 120)
    assert dysample.sizes()['out'] == (1, 256, 240, 240)
    (large,) = benchmark.preset('large', CPU)
    assert 2 * math.prod(large.sizes()['out']) >= 4 * benchmark.cache_bytes(CPU)
    (small,) = benchmark.preset('small', CPU)
    assert small.sizes()['query'] == (2, 32, 128, 128)
    assert small.sizes()['value'] == (2, 256, 64, 64)
    _, shapes = benchmark.parse(['--device', 'cpu'])
    assert shapes == [small]
    _, shapes = benchmark.parse(['--device', 'cpu', '--shapes', 'dysample', 'segformer'])
    assert [shape.name.split()[0] for shape in shapes] == ['dysample', *['segformer'] * 3]


def test_totals_count_every_step(capsys):
    def row(shape, name, ms):
        both = {'not_timed': 'x'} if name == 'half' and shape == 'b' else {'ms': 10 * ms}
        common = dict(dtype='float32', layout='nchw', candidate=name)
        return dict(common, shape=shape) | {'forward': {'ms': ms}, 'forward+backward': both}

    shapes = [
        contest.Shape('a', 1, 2, 2, steps=('x', 'y')),
        contest.Shape('b', 1, 2, 2, steps=('z',)),
        contest.Shape('c', 1, 2, 2),
    ]
    rows = [row(s, n, ms) for s, ms in [('a', 1), ('b', 5), ('c', 9)] for n in ('all', 'half')]
    report.print_totals(shapes, rows)
    out = capsys.readouterr().out
    assert 'All 3 steps of SegFormer' in out
    assert '| float32 | nchw | all | 7.000 ms | 70.0 ms |' in out
    assert '| float32 | nchw | half | 7.000 ms | - |' in out
    report.print_totals(shapes[2:], rows)
    assert capsys.readouterr().out == ''


def plot_rows():
    rows = []
    for shape in ('fpn 200x304', 'segformer 64x64', 'large 256x256'):
        for layout in benchmark.LAYOUTS:
            for i, name in enumerate(['sapa_mm', 'unfold+einsum', 'bilinear', 'never', 'forward']):
                figures = {'ms': 1.0, 'time_over_bilinear': 0.3 * 5.0**i if i != 2 else 1.0}
                row = dict(shape=shape, dtype='float32', layout=layout, candidate=name)
                row |= {'forward': figures, 'forward+backward': figures}
                if name == 'never':
                    row |= {label: {'not_timed': 'x'} for label in contest.PASSES}
                if name == 'forward':
                    row['forward+backward'] = {'not_timed': 'x'}
                rows.append(row)
    return rows


def test_plot_shows_every_bar_and_nothing_is_cut_off(tmp_path):
    path = tmp_path / 'plot.png'
    info = {'device': 'A device with quite a long name', 'torch': '2.13.0', 'date': '2026-01-01'}
    report.write_plot(path, info, plot_rows())
    assert [p.name for p in tmp_path.iterdir()] == ['plot.png']
    picture = (mpimg.imread(path)[..., :3] * 255).round().astype(int)
    height, width, _ = picture.shape
    assert min(height, width) > 600
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (edge == 255).all()
    panels = picture[: int(0.85 * height)]  # without the legend
    colours = {'C0': (31, 119, 180), 'C1': (255, 127, 14), 'C2': (44, 160, 44)}
    # The right panels begin a little right of the middle.
    sides = panels[:, : width // 2], panels[:, int(0.6 * width) :]
    area = {c: [(side == rgb).all(-1).sum() for side in sides] for c, rgb in colours.items()}
    assert min(area['C0'] + area['C1']) > 1000
    # On a logarithmic axis from bilinear's 1, 1.5 is shorter than 0.3.
    assert area['C1'][0] < area['C0'][0] < area['C2'][0]
    assert area['C2'][1] == 0  # was timed forward alone


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'figures.json'
    report.write_json(path, {'a': 1})
    assert json.loads(path.read_text()) == {'a': 1}
    with pytest.raises(TypeError):
        report.write_json(path, {'a': object()})

    def fail(part):
        part.write_text('half')
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        report.write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ['figures.json']
    assert json.loads(path.read_text()) == {'a': 1}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--rounds 0', 'argument --rounds: expected a positive int, got 0'),
        ('--batch x', 'argument --batch: expected a positive int, got x'),
        ('--kernel-size 4', 'argument --kernel-size: expected an odd positive int, got 4'),
        ('--shapes tiny', "argument --shapes: invalid choice: 'tiny'"),
        ('--dtypes float64', "argument --dtypes: invalid choice: 'float64'"),
        ('--shapes fpn --kernel-size 3', 'argument --kernel-size: not allowed with --shapes'),
        ('--size 3 3 --shapes fpn', 'argument --size: not allowed with --shapes'),
        ('--device cuda:99', 'argument --device: expected a device that is there, got cuda:99'),
        ('--device meta', 'argument --device: expected cpu, cuda or cuda:N, got meta'),
        ('--device gpu', 'argument --device: expected cpu, cuda or cuda:N, got gpu'),
        ('--plot plot.mp3', 'argument --plot: expected a file that ends in one of'),
        ('--plot nowhere/plot.png', 'expected a file in an existing folder, got nowhere/plot.png'),
        ('--json nowhere/a.json', 'expected a file in an existing folder, got nowhere/a.json'),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        benchmark.main(options.split())
    assert error.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ''
