"""What is installed, and what `import sapa_mm` does with only some of the frameworks."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from testing_imports import ALL, run
from testing_lines import IS_FORK
from testing_wheel import ROOT, build_wheel

from sapa_mm.frameworks import INSTALL, LINES, installed_lines

OPS = """
import torch
out = sapa_mm.ops.point_affiliation(*torch.ones(3, 1, 1, 2, 2), kernel_size=1)
assert out.tolist() == [[[[1, 1], [1, 1]]]]
"""


def check(code: str, *blocked: str) -> None:
    """The code runs and neither it nor the import prints anything."""
    result = run(code, *blocked)
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ''


def error(code: str, *blocked: str) -> str:
    """The last line of the ImportError that code ends with."""
    result = run(f'assert issubclass(sapa_mm.MissingFrameworkError, ImportError)\n{code}', *blocked)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('sapa_mm.frameworks.MissingFrameworkError: '), result.stderr
    return last


def packages_on_disk() -> set[str]:
    found = {'sapa_mm.kernels'}
    for init in (ROOT / 'sapa_mm').rglob('__init__.py'):
        found.add('.'.join(init.parent.relative_to(ROOT).parts))
    return found


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    listed = set(setup['options']['packages'].split())
    assert listed == packages_on_disk()
    assert (ROOT / 'kernels' / '__init__.py').is_file()


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp('wheel'))


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split('/')[0] for n in names if '.dist-info/' not in n} == {'sapa_mm'}
    packages = {n.removesuffix('/__init__.py').replace('/', '.') for n in names if '/__init__' in n}
    assert packages == packages_on_disk()
    assert any(n.endswith('LICENSE') for n in names)


def test_the_wheel_holds_every_config_and_tool(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, suffixes in (('configs', ('.py', '.md', '.yml')), ('tools', ('.py',))):
        files = {p.relative_to(ROOT) for p in (ROOT / folder).rglob('*') if p.suffix in suffixes}
        expected = {f'sapa_mm/.mim/{p.as_posix()}' for p in files if '__pycache__' not in p.parts}
        kept = {n for n in names if n.startswith(f'sapa_mm/.mim/{folder}/') and '.sh' not in n}
        assert kept == expected
    assert {'sapa_mm/.mim/model-index.yml', 'sapa_mm/py.typed'} <= names
    assert 'sapa_mm/.mim/tools/dist_train.sh' in names


def test_the_model_index_lists_every_family():
    index = (ROOT / 'sapa_mm' / '.mim' / 'model-index.yml').read_text()
    listed = {line.removeprefix('  - ') for line in index.splitlines()[1:]}
    assert listed == {p.relative_to(ROOT).as_posix() for p in ROOT.glob('configs/*/metafile.yml')}


def test_the_wheel_imports_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / 'site'
    zipfile.ZipFile(wheel).extractall(target)
    code = f"""
from pathlib import Path
import sapa_mm.kernels, sapa_mm.segmentation, sapa_mm.detection, sapa_mm.visualization
for module in (sapa_mm, sapa_mm.kernels, sapa_mm.detection):
    assert Path(module.__file__).is_relative_to({str(target)!r}), module.__file__
"""
    result = subprocess.run(
        [sys.executable, '-c', 'import sapa_mm\n' + code],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(target)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def test_torch_alone():
    check(OPS, *ALL)
    for part in ('visualization', 'reconstruction', 'matting'):
        message = error(f'import sapa_mm.{part}', *ALL)
        assert f'sapa_mm.{part} needs mmengine' in message
        assert 'pip install ' in message


def test_mmengine_alone():
    blocked = ALL[1:]
    check(
        OPS
        + 'from mmengine.registry import MODELS; assert MODELS.get("SAPA")\n'
        + 'from sapa_mm.matting import CompositionDataset, GuidedMattingNet, MattingMetric',
        *blocked,
    )
    build = 'from sapa_mm.upsamplers import build_upsampler as b; b(dict(type="deconv"), 4)'
    assert f'pip install {INSTALL["mmcv-lite"]}' in error(build, *blocked)


def test_mmseg_without_mmdet():
    check(
        OPS + 'from sapa_mm.segmentation import GuidedFPN, GuidedSegformerHead, BoundaryIoU',
        'mmdet',
    )
    message = error('from sapa_mm.detection import GuidedFPN', 'mmdet')
    assert message == error('sapa_mm.detection.GuidedFPN', 'mmdet')
    assert 'sapa_mm.detection needs mmdetection' in message
    assert f'pip install {INSTALL["mmcv"]} {INSTALL["mmdet"]}' in message


def test_mmdet_without_mmseg():
    check(OPS + 'from sapa_mm.detection import GuidedFPN', 'mmseg')
    message = error('from sapa_mm.segmentation import GuidedFPN', 'mmseg')
    assert 'sapa_mm.segmentation needs mmsegmentation' in message
    assert f'pip install {INSTALL["mmcv"]} {INSTALL["mmseg"]}' in message


def test_mmcv_lite():
    # mmcv-lite is mmcv without its operators, which both frameworks import, the fork's mmseg if it
    # can.
    blocked = ('mmcv.ops', 'mmcv._ext')
    code = (
        OPS
        + 'from sapa_mm.upsamplers import build_upsampler as b\n'
        + 'assert b(dict(type="deconv"), 4).layer.stride == (2, 2)\n'
    )
    if IS_FORK:
        result = run(code + 'from sapa_mm.segmentation import GuidedFPN', *blocked)
        assert result.returncode == 0, result.stderr
    else:
        check(code, *blocked)
    for host in ('detection',) if IS_FORK else ('segmentation', 'detection'):
        message = error(f'from sapa_mm.{host} import GuidedFPN', *blocked)
        missing = "cannot import name 'ops'" if IS_FORK else "No module named 'mmcv.ops'"
        assert f'cannot be imported ({missing}' in message
        assert f'pip install {INSTALL["mmcv"]} ' in message


def test_all_frameworks():
    check(
        OPS
        + 'from mmseg.registry import MODELS as S; from mmdet.registry import MODELS as D\n'
        + 'assert S.get("GuidedFPN") is sapa_mm.segmentation.GuidedFPN\n'
        + 'assert D.get("GuidedFPN") is sapa_mm.detection.GuidedFPN\n'
        + 'assert S.get("SAPA") is D.get("SAPA") is sapa_mm.upsamplers.SAPA'
    )


def test_pictures_without_matplotlib():
    assert 'pip install matplotlib' in error('import sapa_mm.visualization', 'matplotlib')


def test_what_to_install_is_of_the_line_that_is_there():
    (line,) = installed_lines()
    assert INSTALL == LINES[line]
    # In an environment with neither, the fork, which installs without a compiler.
    code = (
        'import importlib.metadata as m\n'
        'def none(name): raise m.PackageNotFoundError(name)\n'
        'm.distribution = none\n'
        'from frameworks import INSTALL, LINES\n'
        'assert INSTALL == LINES["onedl"]'
    )
    # The setup imports the module like this too, before sapa_mm can be imported.
    subprocess.run([sys.executable, '-c', code], cwd=ROOT / 'sapa_mm', check=True, timeout=60)


def test_an_extra_is_of_one_line():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    for extra, wanted in setup['options.extras_require'].items():
        names = [line for line in wanted.split('\n') if 'mm' in line and 'sapa_mm' not in line]
        forked = [name for name in names if name.startswith('onedl-')]
        assert forked == (names if extra.startswith('onedl-') else []), extra
        assert bool(names) == extra.startswith(('onedl-', 'upstream-')), extra
