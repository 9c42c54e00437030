"""The upsamplers where no framework is installed, and where mmengine is broken."""

import ast
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule, trunc_normal_init
from mmengine.model import ModuleDict as MMModuleDict
from mmengine.registry import MODELS
from testing_imports import ALL, run
from testing_upsamplers import CONFIGS, Results, compute
from torch import nn

from sapa_mm.frameworks import INSTALL
from sapa_mm.upsamplers import SAPA, build_steps, registration

ROOT = Path(__file__).parents[2]
TESTS = ROOT / 'tests'


def alone(code: str) -> str:
    """What code prints that runs without any framework."""
    done = run(code, *ALL, path=TESTS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> Results:
    """What all of them compute with torch alone."""
    file = tmp_path_factory.mktemp('alone') / 'results.pt'
    alone(
        'import torch, testing_upsamplers\n'
        'torch.set_num_threads(1)\n'  # as in the tests: more add in another order
        f'torch.save(testing_upsamplers.compute_all(), {str(file)!r})'
    )
    return torch.load(file)


@pytest.mark.parametrize('name', CONFIGS)
def test_they_compute_the_same_as_with_mmengine(name, results):
    expected = compute(CONFIGS[name])
    assert list(results[name]) == list(expected)
    for key, value in expected.items():
        assert torch.equal(results[name][key], value), key
    assert torch.equal(expected['out'], expected['out of an unpickled copy'])


def test_nothing_is_imported_beyond_torch():
    code = """
import sys, sapa_mm.upsamplers
loaded = {name.partition('.')[0] for name in sys.modules}
print(*loaded & {'mmengine', 'mmcv', 'mmseg', 'mmdet', 'cv2', 'matplotlib', 'rich', 'triton'})
import subprocess
code = "import torch, sys; print(*{name.partition('.')[0] for name in sys.modules})"
torch_alone = set(subprocess.check_output([sys.executable, '-c', code], text=True).split())
print(*loaded - torch_alone - sys.stdlib_module_names - {'sapa_mm'} - {
    name for name in loaded if name.startswith('_')})
"""
    assert alone(code).split() == []


def test_types_are_found_by_their_names():
    code = """
import torch
from torch import nn
from sapa_mm.frameworks import INSTALL
from sapa_mm.upsamplers import SAPA, SingleInputUpsampler, build_steps, build_upsampler
assert type(build_upsampler(dict(type='SAPA', embed_dims=8), 64, 32)) is SAPA
assert build_upsampler(dict(type=SAPA, kernel_size=3), 64).kernel_size == 3
assert type(build_upsampler(dict(type='nearest'), 64, 32)) is SingleInputUpsampler
steps = build_steps(dict(type='SAPA'), {'b': dict(type='bilinear')}, {'a': (4, 6), 'b': (4, 4)})
assert isinstance(steps, nn.ModuleDict)
assert [type(step).__name__ for step in steps.values()] == ['SAPA', 'SingleInputUpsampler']
before = steps['a'].key_proj.weight.clone()
steps.init_weights()
assert not torch.equal(steps['a'].key_proj.weight, before)
for cfg in (dict(type='SAPPA'), dict(type='deconv'), dict(type='SAPA', mode='x')):
    try:
        build_upsampler(cfg, 4)
    except Exception as error:
        print(type(error).__name__, error)
"""
    unknown, layer, option = alone(code).splitlines()
    assert unknown.startswith(
        'ValueError upsample_cfg: expected type SAPA, A2U, CARAFE, DySample, FADE, '
        'FADELite, IndexNet, MaxUnpooling, SoftClusteringUpsampler, nearest, bilinear, deconv, '
        'pixel_shuffle or'
    )
    assert layer.startswith("MissingFrameworkError upsampler type 'deconv' needs mmcv, ")
    assert layer.endswith(f'pip install {INSTALL["mmcv-lite"]}')
    assert option.startswith('TypeError ') and "'mode'" in option


def test_init_cfg_is_refused():
    code = """
from sapa_mm.frameworks import INSTALL
from sapa_mm.upsamplers import SAPA, SoftClusteringUpsampler
for kind in (SAPA, SoftClusteringUpsampler):
    assert kind(4, init_cfg=None).init_cfg is None
    try:
        kind(4, init_cfg=dict(type='Xavier', layer='Conv2d'))
    except ValueError as error:
        print(error)
"""
    lines = alone(code).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith('init_cfg: expected None, as mmengine is not installed, got {')
        assert line.endswith(f'pip install {INSTALL["mmengine"]}')


def test_they_are_traced_alike():
    code = """
import torch
from testing_upsamplers import CONFIGS
from sapa_mm.upsamplers import build_upsampler
x, guide = torch.randn(2, 8, 5, 7), torch.randn(2, 8, 9, 14)
for cfg in CONFIGS.values():
    with torch.device('meta'):
        module = build_upsampler(cfg, 8, 8)
    out = module(x.to('meta'), guide.to('meta'))
    assert out.shape == (2, 8, 9, 14) and out.is_meta
for cfg in (CONFIGS['sapa_gated'], CONFIGS['carafe']):
    module = build_upsampler(cfg, 8, 8).eval()
    expected = module(x, guide)
    compiled = torch.compile(module, backend='aot_eager', fullgraph=True)
    assert torch.equal(compiled(x, guide), expected)
    exported = torch.export.export(module, (x, guide)).module()
    assert torch.equal(exported(x, guide), expected)
    assert torch.equal(module(x, guide), expected)
print('done')
"""
    assert alone(code).splitlines()[-1] == 'done'


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        ('import no_such_package', "ModuleNotFoundError: No module named 'no_such_package'"),
        ('import torch; torch.no_such_name', 'AttributeError: '),
        ('', "ModuleNotFoundError: No module named 'mmengine.model'"),
    ],
)
def test_a_broken_mmengine_is_told(source, reason, tmp_path):
    (tmp_path / 'mmengine').mkdir()
    (tmp_path / 'mmengine' / '__init__.py').write_text(source)
    code = 'assert sapa_mm.ops.backend\nimport sapa_mm.upsamplers'
    # mmseg and mmdet would fail by themselves.
    done = run(code, *ALL[1:], path=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        'sapa_mm.frameworks.MissingFrameworkError: mmengine is installed, but cannot be imported '
        f'({reason}'
    )
    assert f'pip install --force-reinstall {INSTALL["mmengine"]}' in last


def test_mmengine_is_used_where_it_is():
    assert issubclass(SAPA, BaseModule)
    assert registration.MODELS is MODELS
    assert MODELS.get('SAPA') is SAPA
    assert type(build_steps(dict(type='SAPA'), None, {'a': (4, 4)})) is MMModuleDict


@pytest.mark.parametrize(('shape', 'seed'), [((32, 64), 0), ((1, 7), 1)])
def test_projections_are_initialized_as_mmengine_does(shape, seed):
    torch.manual_seed(seed)
    sapa = SAPA(shape[1], embed_dims=shape[0], bias=False)
    # The constructor draws four times: PyTorch's key and query, and then ours.
    torch.manual_seed(seed)
    layers = [nn.Linear(shape[1], shape[0], bias=False) for _ in range(2)]
    for layer, name in zip(layers, ('key_proj', 'query_proj'), strict=True):
        trunc_normal_init(layer, std=0.02)
        assert torch.equal(sapa.get_submodule(name).weight, layer.weight)


def test_one_module_alone_imports_mmengine():
    """Whatever else is at the head of another module would be missing with torch alone."""
    importers = set()
    for path in (ROOT / 'sapa_mm' / 'upsamplers').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, 'names', ())]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or '']
            if isinstance(node, ast.Import | ast.ImportFrom) and any(
                name.partition('.')[0] == 'mmengine' for name in names
            ):
                importers.add(path.name)
    assert importers == {'registration.py'}
