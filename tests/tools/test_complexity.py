import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from sapa_mm.tools.complexity import command as complexity
from sapa_mm.tools.complexity import tables
from sapa_mm.tools.complexity.count import count

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
SAPA = ROOT / 'configs' / 'sapa'
GUIDED = SAPA / 'segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
DETECTOR = SAPA / 'faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py'


@pytest.mark.parametrize(
    'cfg, size',
    [
        ({'crop_size': (512, 640)}, (512, 640)),
        ({'crop_size': (512, 512), 'preprocessor': {'size': (640, 320)}}, (640, 320)),
        ({'test_pipeline': [{'type': 'Resize', 'scale': (2048, 512)}]}, (512, 2048)),
        ({'default_scope': 'mmdet', 'scale': (1333, 800), 'keep_ratio': True}, (800, 1333)),
        ({'default_scope': 'mmdet', 'scale': (800, 1333), 'keep_ratio': True}, (800, 1333)),
        ({'default_scope': 'mmdet', 'scale': (640, 320), 'keep_ratio': False}, (320, 640)),
        ({'default_scope': 'mmdet', 'crop_size': (512, 512)}, None),
        ({'default_scope': 'mmdet', 'scale': 1.0}, None),
    ],
)
def test_the_size_of_the_image_is_the_configs(cfg, size):
    cfg = {'default_scope': 'mmseg', 'model': {}, **cfg}
    if 'preprocessor' in cfg:
        cfg['model'] = {'data_preprocessor': cfg.pop('preprocessor')}
    if 'scale' in cfg:
        resize = {'scale': cfg.pop('scale'), 'keep_ratio': cfg.pop('keep_ratio', False)}
        pipeline = [{'type': 'LoadImageFromFile'}, resize]
        cfg['test_dataloader'] = {'dataset': {'pipeline': pipeline}}
    assert complexity.config_size(cfg) == size


def test_images_of_coco_are_padded():
    job = complexity.read_job('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', None)
    assert job.size == (800, 1344)
    assert complexity.read_job(str(DETECTOR), (33, 64)).size == (64, 64)


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, TOOLS / 'complexity.py', *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_counts_models_prints_tables_and_writes_files(tmp_path):
    files = tmp_path / 'found.json', tmp_path / 'found.md'
    config = GUIDED.relative_to(ROOT)
    tables = [part for name in ('coco', 'depth', 'ops') for part in ('--table', name)]
    options = *tables, '--json', files[0], '--markdown', files[1]
    result = run(config, *options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == f'[1/1] {config} runs on the CPU\n'
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert files[1].read_text() == result.stdout

    record = json.loads(files[0].read_text())
    assert record['versions']['torch'] == torch.__version__
    (model,) = record['models']
    assert model['config'] == str(config) and model['shape'] == [3, 160, 160]
    guided = count(Config.fromfile(GUIDED), (160, 160))
    assert (model['params'], model['flops']) == (guided.params, guided.flops)
    assert model['steps'][0] == {
        'host': 'decode_head',
        'name': 'c4_c3',
        'kind': 'SAPA (gated)',
        'sizes': [[[5, 5], [10, 10]]],
        'params': 6561,
        'flops': 25 * (2 * 64 * 32 + 64 + 32) + 100 * (64 * 32 + 32 + 25 * (32 + 64)),
        'exact': True,
    }
    assert [table['table'] for table in record['tables']] == ['coco', 'depth', *3 * ['ops']]
    row = record['tables'][0]['rows'][0]
    assert (row['model'], row['upsampler']) == ('Faster R-CNN R50', 'CARAFE')
    (found,) = row['cells']
    assert found == {
        'kind': 'M parameters',
        'computed': 222_444,
        'paper': '0.22',
        'note': None,
        'difference': pytest.approx(0.002444),
        'agrees': True,
    }

    text = re.sub(' +', ' ', result.stdout)
    assert f'## {config}\n\nEncoderDecoder, image 3 x 160 x 160\n' in text
    assert '| model | 565,233 | 0.1008 |' in text
    assert '| in it: upsampling | 39,366 | 0.03151 |' in text
    assert '| decode_head c4_c1 | SAPA (gated) | 20 x 20 | 40 x 40 | 6,561 | 0.008845 |' in text
    assert re.search(r'^Not counted, with how often they ran: .*gelu \(5\)', text, re.M)
    assert '| Faster R-CNN R50 | CARAFE | 0.2224 | 0.22 | +0.0024 | |' in text
    assert '| IndexNet | 44.1935 | 44.20 | -0.0065 | (2) |' in text
    assert '| IndexNet M2O | 4,457,472 | 4,457,472 | +0 | |' in text
    assert '| dynamic-cs | 19,608 | 20K | -0.39K | |' in text
    assert '| SAPA-G, default | 0.0779 | - | - | (1) |' in text
    assert "5 of 7 figures are the paper's, at its precision.\n\n(1) 47,481,968, and the" in text


def test_a_difference_without_a_note_fails(monkeypatch, tmp_path, capsys):
    cells = [tables.Cell('GFLOPs', 5 * 10**9, paper) for paper in ('5.00', '5.01')]
    rows = [((name,), [found]) for name, found in zip(('right', 'wrong'), cells, strict=True)]
    monkeypatch.setattr(tables, 'ops', lambda: [tables.Table('T', ('upsampler',), rows)])
    out = tmp_path / 'found.json'
    assert complexity.main(['--table', 'ops', '--json', str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.err == 'wrong: GFLOPs differ from the paper\n'
    assert '| wrong     | 5.0000 |  5.01 |    -0.0100 | differs |' in printed.out
    (table,) = json.loads(out.read_text())['tables']
    assert [row['cells'][0]['agrees'] for row in table['rows']] == [True, False]


def test_help():
    result = run('--help')
    assert result.returncode == 0
    assert '--table {ade20k,coco,depth,ops}' in result.stdout
    assert 'tools/' not in result.stderr and 'complexity.py --table ade20k' in result.stdout


CONFIGS = {
    'broken.py': 'model = (',
    'scopeless.py': "model = dict(type='A')",
    'modelless.py': "default_scope = 'mmseg'",
    'sizeless.py': "default_scope = 'mmseg'\nmodel = dict(type='A')",
    'misfit.py': f"_base_ = '{GUIDED}'\nmodel = dict(decode_head=dict(in_channels=[8, 8, 8, 8]))",
    'unknown.py': "default_scope = 'mmseg'\ncrop_size = (8, 8)\nmodel = dict(type='Nobody')",
}


@pytest.fixture
def configs(tmp_path):
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'expected a CONFIG or --table, got neither'),
        (['--table', 'ops', '--shape', '8', '8'], 'argument --shape: expected a CONFIG with it'),
        (['--table', 'imagenet'], "argument --table: invalid choice: 'imagenet'"),
        (['a.py', '--shape', '8'], 'argument --shape: expected 2 arguments'),
        (['a.py', '--shape', '8', '0'], 'argument --shape: expected a positive int, got 0'),
        (['a.py', '--shape', '8', 'x'], 'argument --shape: expected a positive int, got x'),
        (['a.py'], "CONFIG: no file 'a.py'"),
        (['mmsegg::a.py'], 'CONFIG: expected one of mmseg, mmdet, sapa_mm before "::"'),
        (['mmseg::unet/a.py'], "CONFIG: mmseg installs no config 'unet/a.py'"),
        (['broken.py'], 'CONFIG: broken.py cannot be read: SyntaxError'),
        (['scopeless.py'], "CONFIG: expected default_scope 'mmseg' or 'mmdet' in scopeless.py"),
        (['modelless.py'], 'CONFIG: expected a model in modelless.py, got none'),
        (['sizeless.py'], 'CONFIG: sizeless.py names no size of its images; give --shape H W'),
        (['unknown.py', '--json', 'no/a.json'], 'argument --json: expected a file in an existing'),
        (['unknown.py', '--markdown', '.'], 'argument --markdown: expected a file in an existing'),
        ([str(GUIDED), 'a.py', '--json', 'a.json'], "CONFIG: no file 'a.py'"),
    ],
)
def test_bad_input_ends_before_any_work(configs, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(configs)
    with pytest.raises(SystemExit) as stop:
        complexity.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert f': error: {message}' in printed.err and not printed.out
    assert {path.name for path in configs.iterdir()} == set(CONFIGS)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['unknown.py'], 'unknown.py cannot be built, or cannot run at 8 x 8: KeyError: '),
        (['misfit.py'], 'misfit.py cannot be built, or cannot run at 160 x 160: RuntimeError: '),
    ],
)
def test_a_model_that_fails_ends_in_a_sentence(configs, monkeypatch, arguments, message):
    monkeypatch.chdir(configs)
    with pytest.raises(SystemExit) as stop:
        complexity.main([*arguments, '--json', 'a.json', '--markdown', 'a.md'])
    assert message in stop.value.code and '\n' not in stop.value.code
    assert {path.name for path in configs.iterdir()} == set(CONFIGS)
