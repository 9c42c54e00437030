"""How a run of compare.py begins, and how it goes on."""

from pathlib import Path

import pytest

from sapa_mm.tools.compare.history import Logging
from sapa_mm.tools.compare.runs import Run, training

RESUME = ['load_from=None', '--resume']
KEEP_TWO = 'default_hooks.checkpoint.max_keep_ckpts=2'


@pytest.fixture
def run(tmp_path) -> Run:
    config = tmp_path / 'config.py'
    config.write_text(
        "default_scope = 'mmseg'\nmodel = dict(type='EncoderDecoder')\n"
        "default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))\n"
    )
    (tmp_path / 'seed3').mkdir()
    return Run('fade', 3, config, tmp_path / 'seed3', '', Logging(600, False, 10, False))


def point_to(run: Run, name: str) -> Path:
    path = run.folder / 'last_checkpoint'
    path.write_text(name)
    return path


def test_it_begins_as_the_config_says(run):
    found = training(run)
    assert found[-1] == 'randomness.seed=3' and '--resume' not in found
    assert found[found.index('--work-dir') + 1] == str(run.folder)


def test_it_resumes_its_own_checkpoint_and_no_published_one(run):
    begin = training(run)
    (run.folder / 'iter_4.pth').touch()
    point_to(run, str(run.folder / 'iter_4.pth'))
    assert training(run) == [*begin, *RESUME]


@pytest.mark.parametrize('name', ['', 'iter_4.pth'])
def test_it_begins_anew_where_its_checkpoint_is_gone(run, name):
    begin = training(run)
    last = point_to(run, name and str(run.folder / name))
    assert training(run) == begin
    assert not last.exists()


def test_it_always_has_a_whole_checkpoint(run):
    text = run.config.read_text()
    run.config.write_text(text.replace('interval=1', 'interval=1, max_keep_ckpts=1'))
    assert training(run)[-2:] == ['randomness.seed=3', KEEP_TWO]
    run.config.write_text(text.replace('interval=1', 'interval=1, max_keep_ckpts=3'))
    assert KEEP_TWO not in training(run)
