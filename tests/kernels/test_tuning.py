import itertools

import pytest
import torch
from testing_embedding import ALL, Case, check_case
from testing_utils import Sizes, affiliation_inputs, assembly_inputs, check_against_reference

from sapa_mm.kernels import (
    affiliation,
    affiliation_backward,
    assembly,
    embedding,
    embedding_backward,
    embedding_plan,
    launch,
    tuning,
)
from sapa_mm.ops import assemble, backend, point_affiliation, reference

TABLES = {name: getattr(tuning, name) for name in ('FORWARD', 'BACKWARD', 'TRANSPOSE', 'VALUE')}
#: The embedding has choices of its own, and the kernels that have them.
EMBEDDING = {
    'FORWARD': (embedding_plan.FORWARD, embedding.embedding_fwd_kernel),
    'MAP': (embedding_plan.MAP, embedding_backward.embedding_bwd_kernel),
    'SUMS': (embedding_plan.SUMS, embedding_backward.embedding_sums_kernel),
}
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


@pytest.mark.parametrize('name', ['TRANSPOSE', 'VALUE'])
def test_a_tile_of_cells_fits_its_blocks(name):
    for problem in problems():
        for _, blocks in tuning.candidates(TABLES[name], problem, SHARED_BYTES, 32):
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


@pytest.mark.parametrize('slots', [(1, 1), (2, 2), (4, 4)])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_planes_get_tiles_that_fill_sectors(dtype, slots):
    """A row of pixels of a tile fills the sectors of 32 bytes that its entry names."""
    problem = make_problem(channels_last=False, dtype=dtype, precision='tf32', slots=slots)
    found = tuning.candidates(tuning.FORWARD, problem, 2**20, 32)
    assert found[0][0].sectors
    # Where maps are planes, the entries that are made for them come before all others.
    made = [entry.sectors > 0 for entry, _ in found]
    assert made == sorted(made, reverse=True)
    for entry, blocks in found:
        width = 32 * entry.sectors // dtype.itemsize
        # A tile is at least a row of cells.
        if width * slots[0] <= blocks['BLOCK_M']:
            assert blocks['TILE_W'] * slots[1] >= width, entry


def test_rows_of_pixels_are_as_wide_as_they_can_be_where_sectors_do_not_fit():
    entry = tuning.Entry(64, 64, 4, 2, sectors=4)
    blocks = tuning.pixel_blocks(make_problem(kernel_size=9, channels_last=False), entry)
    without = tuning.pixel_blocks(make_problem(kernel_size=9), entry._replace(sectors=0))
    assert blocks['BLOCK_M'] * blocks['BLOCK_N'] <= 2 * tuning.MAX_SCORES
    assert blocks['TILE_W'] >= without['TILE_W']


def test_maps_with_channels_innermost_keep_the_order_of_a_table():
    for table in TABLES.values():
        ((entry, _), *_) = tuning.candidates(table, make_problem(), 2**20, 32)
        assert entry[:2] == table.entries[0][:2]
        assert entry.sectors == 0


def test_pixels_are_read_in_steps_of_their_own():
    """An entry's step is what is read at a time; without one it is its rows."""
    for entry, blocks in tuning.candidates(tuning.VALUE, make_problem(), 2**20, 32):
        assert blocks['BLOCK_M'] == (entry.step or entry.rows)
        assert blocks['BLOCK_N'] <= max(16, entry.rows)
    assert {entry.step for entry in tuning.VALUE.entries} > {0}


@pytest.mark.parametrize('name', TABLES)
def test_products_in_full_float32_have_entries_of_their_own(name):
    table = TABLES[name]
    for precision, expected in (('ieee', table.float32 or table.entries), ('tf32', table.entries)):
        problem = make_problem(dtype=torch.float32, precision=precision)
        found = tuning.candidates(table, problem, 2**20, 32)
        sizes = {(entry.rows, entry.block_c, entry.num_stages) for entry in expected}
        assert {(entry.rows, entry.block_c, entry.num_stages) for entry, _ in found} == sizes


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
    assert [entry.num_warps for entry, _ in narrow] == [4, 4, 4, 4, 4, 8]
    assert [entry.num_warps for entry, _ in wide] == [2, 2, 2, 2, 2, 4]


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


def entries():
    """Every entry of every table, and the dtype of the products that it is for."""
    for name, table in TABLES.items():
        for i, entry in enumerate(table.entries):
            yield pytest.param(name, entry, torch.float16, id=f'{name}-{i}')
        for i, entry in enumerate(table.float32):
            yield pytest.param(name, entry, torch.float32, id=f'{name}-float32-{i}')


#: What the operators' gradients and results launch by each table.
KERNELS = {
    'FORWARD': affiliation.affiliation_fwd_kernel,
    'BACKWARD': affiliation_backward.affiliation_bwd_kernel,
    'VALUE': affiliation_backward.affiliation_value_bwd_kernel,
    'TRANSPOSE': assembly.assembly_bwd_kernel,
}


def spy_on_launches(monkeypatch, *modules) -> list[launch.Launch]:
    """What the modules launch from now on, all of it planned anew."""
    launched = []

    def run(*arguments):
        launched.append(launch.run(*arguments))
        return launched[-1]

    monkeypatch.setattr(launch, '_calls', {})
    for module in modules:
        monkeypatch.setattr(module, 'run', run)
    return launched


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize(('name', 'entry', 'dtype'), list(entries()))
def test_every_entry_is_right(name, entry, dtype, layout, kernel_device, monkeypatch):
    """Forward and backward, where no other entry is there to be chosen."""
    single = TABLES[name]._replace(entries=(entry,), float32=())
    monkeypatch.setattr(tuning, name, single)
    launched = spy_on_launches(monkeypatch, affiliation, affiliation_backward, assembly)
    sizes = Sizes(1, 20, 140, (6, 11), (12, 22))
    options = dict(dtype=dtype, layout=layout, device=kernel_device)
    if name == 'TRANSPOSE':
        op, inputs, names = assemble, assembly_inputs(sizes, 5, **options), ('weights', 'value')
    else:
        op, inputs = point_affiliation, affiliation_inputs(sizes, **options)
        names = ('query', 'key', 'value')
    with backend('triton'):
        check_against_reference(op, getattr(reference, op.__name__), inputs, names, kernel_size=5)
    used = [item for item in launched if item.kernel is KERNELS[name]]
    assert [item.num_stages for item in used] == [entry.num_stages]
    limit = entry.block_c * 2 // dtype.itemsize
    assert used[0].constants['BLOCK_C'] == min(limit, 256)


def embedding_entries():
    """Every entry of every kernel of the embedding."""
    for name, (table, _) in EMBEDDING.items():
        for kind, found in table._asdict().items():
            for i, entry in enumerate(found):
                yield pytest.param(name, entry, id=f'{name}-{kind}-{i}')


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize(('name', 'entry'), list(embedding_entries()))
def test_every_entry_of_the_embedding_is_right(name, entry, layout, kernel_device, monkeypatch):
    _, kernel = EMBEDDING[name]
    module = embedding if name == 'FORWARD' else embedding_backward
    single = embedding_plan.Entries(rows=(entry,), planes=(entry,))
    monkeypatch.setattr(module, name, single)
    launched = spy_on_launches(monkeypatch, embedding_plan)
    case = Case('', n=2, c=140, d=20, high=(9, 11), low=(5, 6), tensors=ALL)
    with backend('triton'):
        check_case(case._replace(dtype=torch.float16, layout=layout), kernel_device)
    (used,) = [item for item in launched if item.kernel is kernel]
    assert used.constants['BLOCK_P'] == entry.pixels
    assert (used.num_warps, used.num_stages) == (entry.num_warps, entry.num_stages)


def plan_of(name: str, device: launch.Device, **changes) -> tuple[launch.Launch, ...]:
    table, kernel = EMBEDDING[name]
    request = embedding_plan._Request(table, 2, 96 * 96, 256, 64, True, True)
    constants = (('PRECISION', 'ieee'), ('WIDE', False))
    dtype = changes.pop('dtype', torch.float16)
    return embedding_plan.plan(kernel, request._replace(**changes), dtype, constants, device)[1]


def taken_bytes(item: launch.Launch, dtype: torch.dtype) -> int:
    """Of shared memory: blocks of pixels that are under way, and the weight."""
    blocks = item.constants
    under_way = max(item.num_stages - 1, 1) * blocks['BLOCK_P']
    return (under_way + blocks['BLOCK_D']) * blocks['BLOCK_C'] * dtype.itemsize


@pytest.mark.parametrize('name', ['FORWARD', 'MAP'])
@pytest.mark.parametrize('channels_last', [True, False])
def test_what_does_not_fit_of_the_embedding_is_left_out(channels_last, name):
    for channels, embed, dtype in itertools.product(
        (3, 64, 256, 300, 512, 1024), (1, 32, 64, 70), (torch.float16, torch.float32)
    ):
        sizes = dict(channels=channels, embed=embed, channels_last=channels_last, dtype=dtype)
        roomy = plan_of(name, launch.Device(132, 2**20), **sizes)
        found = plan_of(name, launch.Device(132, SHARED_BYTES), **sizes)
        taken = [taken_bytes(item, dtype) for item in found]
        # Where nothing fits, what takes the least is left.
        least = min(taken_bytes(item, dtype) for item in roomy)
        assert max(taken) <= max(SHARED_BYTES, least), sizes
        assert set(taken) == {
            x for x in (taken_bytes(item, dtype) for item in roomy) if x <= max(taken)
        }


@pytest.mark.parametrize('name', EMBEDDING)
def test_wide_warps_of_the_embedding_are_half_as_many(name):
    # Maps with as many channels have no entries of NVIDIA's own.
    narrow, wide = (plan_of(name, launch.Device(132, 2**20, size), embed=70) for size in (32, 64))
    assert [item.num_warps for item in narrow] == [2 * item.num_warps for item in wide]
    table, _ = EMBEDDING[name]
    assert {item.num_warps for item in narrow} == {entry.num_warps for entry in table.rows}


def test_first_entries_are_for_projections_of_16_bits_of_rows():
    first = {entry[:1] + entry[2:4] for entry in embedding_plan.FORWARD.first}

    def has_first(warp_size=32, **changes):
        item = plan_of('FORWARD', launch.Device(132, 2**20, warp_size), **changes)[0]
        return (item.constants['BLOCK_P'], item.num_warps, item.num_stages) in first

    assert has_first()
    assert not has_first(warp_size=64)  # AMD's
    assert not has_first(channels_last=False)
    assert not has_first(projected=False)
    assert not has_first(dtype=torch.float32, channels=64)
    assert not has_first(channels=512)  # more than a block
    assert not has_first(embed=65)
