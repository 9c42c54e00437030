"""The command sapa-mm and the scripts in tools/, which are doors to the same functions."""

import configparser
import os
import subprocess
import sys
from importlib import metadata

import pytest
from testing_configs import ROOT

import sapa_mm
from sapa_mm import frameworks
from sapa_mm.tools import cli, info

TOOLS = ROOT / 'tools'
# Each script and the tool that it opens.
DOORS = {
    path: text.partition("run('")[2].partition("'")[0]
    for path in sorted(TOOLS.glob('*.py'))
    if (text := path.read_text())
}


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def test_help_lists_every_tool_with_a_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(['--help'])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, tool in cli.TOOLS.items():
        assert [line.split(maxsplit=1)[1] for line in lines if line.split()[:1] == [name]] == [
            tool.summary
        ]


@pytest.mark.parametrize('name', cli.TOOLS)
def test_every_tool_explains_itself_under_the_name_that_was_typed(name, capsys):
    try:
        assert cli.main([name, '--help']) == 0  # train and test have no parser of their own
    except SystemExit as stop:
        assert stop.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f'usage: sapa-mm {name} ')
    assert '%(prog)s' not in out


def test_every_tool_but_info_has_a_door():
    assert sorted(DOORS.values()) == sorted(set(cli.TOOLS) - {'info'})
    assert all(len(path.read_text().splitlines()) <= 15 for path in DOORS)


@pytest.mark.parametrize('door', DOORS, ids=lambda door: door.stem)
def test_a_door_says_how_to_install_what_is_missing(door):
    # Without site-packages there is no sapa_mm.
    done = python('-S', door, '--help')
    assert done.returncode == 1
    assert done.stderr == (
        f"tools/{door.name}: No module named 'sapa_mm'; in the checkout: pip install -e .\n"
    )


def test_the_module_is_the_command():
    done = python('-W', 'ignore', '-m', 'sapa_mm', '--version')
    assert done.stdout == f'sapa_mm {sapa_mm.__version__}\n'
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    scripts = setup['options.entry_points']['console_scripts'].split('\n')
    assert 'sapa-mm = sapa_mm.tools.cli:main' in scripts


def test_an_unknown_tool_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(['trian'])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "'trian'" in error and 'usage: sapa-mm TOOL' in error


def test_without_a_tool_all_are_listed(capsys):
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert all(tool.summary in printed.err for tool in cli.TOOLS.values())


def test_a_users_mistake_is_told_without_a_traceback(capsys):
    assert cli.main(['train', 'no/config.py']) == 2
    assert capsys.readouterr().err == (
        "sapa-mm train: error: CONFIG: no file 'no/config.py'\nSee sapa-mm train --help.\n"
    )


def test_a_missing_package_is_named_with_its_command():
    code = (
        'import sys; sys.modules["mmseg"] = sys.modules["mmcv"] = None; '
        'from sapa_mm.tools import cli; sys.exit(cli.main(["visualize", "--help"]))'
    )
    done = python('-W', 'ignore', '-c', code)
    assert done.returncode == 2
    assert done.stderr == (
        'sapa-mm visualize: error: mmcv is not installed: '
        f'pip install {frameworks.INSTALL["mmcv"]}\n'
        'See sapa-mm visualize --help.\n'
    )


def test_an_error_of_the_users_own_code_is_told_in_full(tmp_path):
    (tmp_path / 'own_model.py').write_text(
        'from mmengine.registry import MODELS\n\n\n@MODELS.register_module()\n'
        'class OwnModel:\n    def __init__(self):\n        import mmseg.nope\n'
    )
    config = tmp_path / 'config.py'
    config.write_text(
        "default_scope = 'mmseg'\ncustom_imports = dict(imports=['own_model'])\n"
        "model = dict(type='OwnModel')\n"
    )
    arguments = ('-m', 'sapa_mm', 'train', config, '--work-dir', tmp_path)
    done = python('-W', 'ignore', *arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'mmseg.nope'"


def test_importing_the_tools_imports_nothing_more():
    code = (
        'import sys, sapa_mm; before = set(sys.modules); import sapa_mm.tools.cli; '
        'print(*(set(sys.modules) - before))'
    )
    done = python('-W', 'ignore', '-c', code)
    new = {name for name in done.stdout.split() if not name.startswith('sapa_mm.tools')}
    assert {name.partition('.')[0] for name in new} <= sys.stdlib_module_names


# What a bug report needs


def test_info_tells_the_versions_and_what_works(capsys):
    info.main([])
    lines = capsys.readouterr().out.splitlines()
    assert f'sapa_mm {sapa_mm.__version__} in {ROOT / "sapa_mm"}' in lines
    (line,) = frameworks.installed_lines()
    names = ('mmengine', 'mmcv', 'mmsegmentation', 'mmdet')
    if line == 'onedl':
        names = ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmdetection')
    told = dict.fromkeys(names, '') | {names[1]: ', with its operators'}
    for package, name in zip(('mmengine', 'mmcv', 'mmseg', 'mmdet'), names, strict=True):
        assert f'{package}: {name} {metadata.version(name)}{told[name]}' in lines
    for package in ('mmseg', 'mmdet'):
        assert f'train and test of {package}: yes' in lines
    assert not any(line.startswith('warning') for line in lines)
    assert any(line.startswith('operators run on ') for line in lines)
    assert "upsamplers: yes, registered in mmengine's MODELS" in lines


def test_info_warns_of_both_lines_in_one_environment(tmp_path, monkeypatch, capsys):
    for name in ('mmengine', 'onedl-mmcv'):
        folder = tmp_path / f'{name.replace("-", "_")}-9.9.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert frameworks.installed_lines() == ['upstream', 'onedl']
    info.main([])
    assert 'warning: mmengine, ' in capsys.readouterr().out


def test_info_says_why_something_does_not_work():
    code = (
        'import sys; sys.modules["mmcv.ops"] = None; sys.modules["triton"] = None; '
        'from sapa_mm.tools import cli; sys.exit(cli.main(["info"]))'
    )
    done = python('-W', 'ignore', '-c', code)
    assert done.returncode == 0, done.stderr
    assert 'without its operators (ModuleNotFoundError: import of mmcv.ops halted' in done.stdout
    assert 'train and test of mmdet: no: sapa_mm.detection needs mmdetection' in done.stdout


def test_info_says_that_upsamplers_need_torch_alone():
    code = (
        'import sys; sys.modules["mmengine"] = sys.modules["mmcv"] = None; '
        'from sapa_mm.tools import cli; sys.exit(cli.main(["info"]))'
    )
    done = python('-W', 'ignore', '-c', code)
    assert done.returncode == 0, done.stderr
    assert 'upsamplers: yes, as PyTorch modules; mmengine, which configs need, is' in done.stdout
    assert 'train and test of mmdet: no: sapa_mm.detection needs mmdetection' in done.stdout
