from matplotlib import image as mpimg

from sapa_mm.tools.benchmark import report
from sapa_mm.tools.benchmark.measure import LAYOUTS
from sapa_mm.tools.benchmark.rows import PASSES, NotTimed, Row, Timing
from sapa_mm.tools.benchmark.shapes import Shape


def timing(ms: float, over_bilinear: float | None = None) -> Timing:
    """A result in which nothing else matters."""
    return Timing(
        extra_bytes=0,
        peak_bytes=0,
        peak_over_bilinear=None,
        ms=ms,
        ms_min_max=(ms, ms),
        launch_ms=0.0,
        time_over_sapa_mm=None,
        time_over_bilinear=over_bilinear,
        least_bytes=1,
        gb_per_s=1.0,
        copy_gb_per_s=1.0,
        of_copy=1.0,
    )


def passes(forward: Timing | NotTimed, both: Timing | NotTimed) -> dict[str, Timing | NotTimed]:
    return dict(zip(PASSES, (forward, both), strict=True))


def test_totals_count_every_step(capsys):
    def row(shape, name, ms):
        both = NotTimed('x') if name == 'half' and shape == 'b' else timing(10 * ms)
        return Row(shape, 'float32', 'nchw', name, passes=passes(timing(ms), both))

    shapes = [
        Shape('a', 1, 2, 2, steps=('x', 'y')),
        Shape('b', 1, 2, 2, steps=('z',)),
        Shape('c', 1, 2, 2),
    ]
    rows = [row(s, n, ms) for s, ms in [('a', 1), ('b', 5), ('c', 9)] for n in ('all', 'half')]
    report.print_totals(shapes, rows)
    out = capsys.readouterr().out
    assert 'All 3 steps of SegFormer' in out
    assert '| float32 | nchw | all | 7.000 ms | 70.0 ms |' in out
    assert '| float32 | nchw | half | 7.000 ms | - |' in out
    report.print_totals(shapes[2:], rows)
    assert capsys.readouterr().out == ''


def test_the_host_has_a_column_on_a_gpu(capsys):
    found = Timing(
        extra_bytes=3 * 2**20,
        peak_bytes=5 * 2**20,
        peak_over_bilinear=1.25,
        ms=0.5,
        ms_min_max=(0.4, 0.6),
        launch_ms=0.1234,
        time_over_sapa_mm=2.0,
        time_over_bilinear=0.75,
        least_bytes=1,
        gb_per_s=1.0,
        copy_gb_per_s=2.0,
        of_copy=0.5,
    )
    rows = [Row('a', 'float16', 'nchw', 'bilinear', passes=passes(found, NotTimed('why')))]
    report.print_table(rows, on_gpu=True)
    head, _, line, *rest = capsys.readouterr().out.splitlines()
    columns = 'of copy | x bilinear | peak x bilinear | host us'
    assert head.endswith(f'| forward | {columns} | forward+backward | {columns} |')
    times = '0.500 ms (2.00x), 3.0 MiB (-x) | 50.0% | 0.75 | 1.25 | 123'
    assert line == f'| float16 | nchw | bilinear | {times} | not timed: why | - | - | - | - |'
    assert rest == ['']  # ours, whose first calls would be told, is not there
    report.print_table(rows, on_gpu=False)
    head, _, line, *_ = capsys.readouterr().out.splitlines()
    assert 'host' not in head
    assert line.count('|') == head.count('|') == 12


def plot_rows():
    rows = []
    for shape in ('fpn 200x304', 'segformer 64x64', 'large 256x256'):
        for layout in LAYOUTS:
            for i, name in enumerate(['sapa_mm', 'unfold+einsum', 'bilinear', 'never', 'forward']):
                forward = both = timing(1.0, 0.3 * 5.0**i if i != 2 else 1.0)
                if name == 'never':
                    forward = NotTimed('x')
                if name in ('never', 'forward'):
                    both = NotTimed('x')
                found = passes(forward, both)
                rows.append(Row(shape, 'float32', layout, name, passes=found))
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
