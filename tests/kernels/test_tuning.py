import itertools

import pytest
import torch
from testing_utils import Sizes, affiliation_inputs, check_against_reference

from sapa_mm.kernels import launch, tuning
from sapa_mm.ops import backend, point_affiliation, reference

TABLES = {name: getattr(tuning, name) for name in ('FORWARD', 'BACKWARD', 'TRANSPOSE')}
#: Of gfx942, the least that a supported device has.
SHARED_BYTES = 2**16


def make_problem(**changes) -> tuning.Problem:
    problem = tuning.Problem(
        dtype=torch.float16,
        precision='ieee',
        channels_last=True,
        kernel_size=5,
        slots=(2, 2),
        exact=True,
        channels=256,
        embed=32,
        extent=(16, 16),
        magnitude=8,
    )
    return problem._replace(**changes)


def problems():
    slots = [(1, 1), (2, 2), (3, 2), (4, 4), (5, 8), (8, 8)]
    extents = [(1, 1), (2, 16), (16, 4), (16, 16)]
    dtypes = [torch.float16, torch.float32]
    for kernel_size, slot, extent, dtype in itertools.product(
        (1, 3, 5, 7, 9), slots, extents, dtypes
    ):
        yield make_problem(kernel_size=kernel_size, slots=slot, extent=extent, dtype=dtype)


@pytest.mark.parametrize(('name', 'max_scores'), [('FORWARD', 2**14), ('BACKWARD', 2**12)])
def test_a_tile_of_pixels_fits_its_blocks(name, max_scores):
    for problem in problems():
        for entry, blocks in tuning.candidates(TABLES[name], problem, SHARED_BYTES, 32):
            height, width = blocks['TILE_H'], blocks['TILE_W']
            halo = problem.kernel_size - 1
            assert height * width * problem.slots[0] * problem.slots[1] <= blocks['BLOCK_M']
            assert (height + halo) * (width + halo) <= blocks['BLOCK_N']
            assert height <= max(problem.extent[0], 1) or problem.extent[0] == 16
            scores = blocks['BLOCK_M'] * blocks['BLOCK_N']
            assert scores <= max_scores or height == width == 1, (problem, blocks)
            # 64 float32 registers a thread for the scores.
            assert scores <= 64 * 32 * entry.num_warps


def test_a_tile_of_cells_fits_its_blocks():
    for problem in problems():
        for _, blocks in tuning.candidates(TABLES['TRANSPOSE'], problem, SHARED_BYTES, 32):
            assert blocks['TILE_H'] * blocks['TILE_W'] <= blocks['BLOCK_N']
            row = (blocks['TILE_W'] + problem.kernel_size - 1) * problem.slots[1]
            assert row <= blocks['ROW'] < 2 * row
            # A power of 2 either divides or is divided by the pixels read at a time.
            assert blocks['ROW'] & (blocks['ROW'] - 1) == 0


def test_the_default_tile_is_the_one_that_wastes_nothing():
    ((entry, blocks), *_) = tuning.candidates(tuning.FORWARD, make_problem(), SHARED_BYTES, 32)
    assert (blocks['TILE_H'], blocks['TILE_W']) == (4, 4)
    assert (blocks['BLOCK_M'], blocks['BLOCK_N']) == (64, 64)
    assert entry.num_warps == 4


def test_planes_get_tiles_that_fill_a_sector():
    found = tuning.candidates(tuning.FORWARD, make_problem(channels_last=False), 2**17, 32)
    _, default = found[0]
    assert default['TILE_W'] * 2 * 2 >= 32  # pixels of two bytes


@pytest.mark.parametrize('name', TABLES)
def test_shared_memory_prunes_all_but_the_default(name):
    problem = make_problem()
    everything = tuning.candidates(TABLES[name], problem, 2**20, 32)
    assert len(everything) >= 3
    assert len(set(map(str, everything))) == len(everything)
    least = tuning.candidates(TABLES[name], problem, 1, 32)
    assert least == everything[:1]
    for entry, blocks in tuning.candidates(TABLES[name], problem, SHARED_BYTES, 32)[1:]:
        assert tuning.shared_bytes(blocks, 2, entry.num_stages) <= SHARED_BYTES


def test_wide_warps_are_half_as_many():
    narrow, wide = (
        tuning.candidates(tuning.FORWARD, make_problem(), 2**20, size) for size in (32, 64)
    )
    assert [entry.num_warps for entry, _ in narrow] == [4, 4, 8]
    assert [entry.num_warps for entry, _ in wide] == [2, 2, 4]


def test_shared_bytes_by_hand():
    blocks = dict(BLOCK_M=64, BLOCK_N=32, BLOCK_C=128, BLOCK_D=16)
    assert tuning.shared_bytes(blocks, 2, 3) == 2 * (3 * (64 + 32) * 128 + 64 * 32)


def test_the_fastest_is_chosen_and_what_cannot_run_is_not(monkeypatch):
    def out_of_memory():
        raise torch.OutOfMemoryError

    times = iter([3.0, 1.0, 2.0])

    def do_bench(run, **_):
        run()
        return next(times)

    # The timer needs a GPU; the choice between times does not.
    monkeypatch.setattr(tuning.triton.testing, 'do_bench', do_bench)
    calls = []
    runs = [lambda i=i: calls.append(i) for i in range(3)]
    assert tuning.fastest([out_of_memory, *runs]) == 2
    assert calls == [0, 1, 2]


def test_nothing_is_tuned_without_a_gpu():
    assert not tuning.autotuning(torch.device('cpu'))


@pytest.mark.parametrize(
    ('name', 'index'),
    [(name, i) for name, table in TABLES.items() for i in range(len(table.entries))],
)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_every_entry_is_right(name, index, layout, kernel_device, monkeypatch):
    table = TABLES[name]
    single = table._replace(entries=table.entries[index : index + 1])
    monkeypatch.setattr(tuning, name, single)
    used = []
    candidates = tuning.candidates

    def spy(table, *arguments):
        if table == single:
            used.append(candidates(table, *arguments))
        return candidates(table, *arguments)

    monkeypatch.setattr(launch.tuning, 'candidates', spy)
    inputs = affiliation_inputs(
        Sizes(1, 20, 140, (6, 11), (12, 22)),
        dtype=torch.float16,
        layout=layout,
        device=kernel_device,
    )
    with backend('triton'):
        check_against_reference(
            point_affiliation,
            reference.point_affiliation,
            inputs,
            ('query', 'key', 'value'),
            kernel_size=5,
        )
    assert used
