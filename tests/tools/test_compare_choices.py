"""What can be compared: upsamplers, with options or without, and the config as it is."""

import argparse

import pytest
from mmengine.config import Config

from sapa_mm.tools.compare.choices import choice, choices, chosen_config, file_stem
from sapa_mm.tools.compare.comparison import write_variants
from sapa_mm.tools.configs import own_configs
from sapa_mm.tools.presets import upsampler_config

CONFIG = (
    own_configs() / 'camvid' / ('segformer_efficientnet-lite0_bilinear_1xb8-800_camvid-360x480.py')
)


def test_a_name_may_have_options():
    assert choice('sapa_b') == 'sapa-b' and choice('unchanged') == 'unchanged'
    name = choice('sapa_b:kernel_size=3:temperature=0.5:border=mask:bias=False')
    assert name == 'sapa-b:kernel_size=3:temperature=0.5:border=mask:bias=False'
    expected = dict(kernel_size=3, temperature=0.5, border='mask', bias=False)
    assert chosen_config(name) == {**upsampler_config('sapa-b'), **expected}
    assert chosen_config('sapa-b') == upsampler_config('sapa-b')
    assert chosen_config('unchanged') is None
    assert choices('nearest,sapa-i,sapa-i:temperature=8') == [
        'nearest',
        'sapa-i',
        'sapa-i:temperature=8',
    ]


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('sapa-x', "expected one of a2u, .* got 'sapa-x'"),
        ('sapa-x:kernel_size=3', "expected one of a2u, .* got 'sapa-x'"),
        ('unchanged:kernel_size=3', "expected one of a2u, .* got 'unchanged'"),
        ('sapa-b:kernel_size', "expected NAME:OPTION=VALUE.* got 'kernel_size' in 'sapa-b:kern"),
        ('sapa-b:', "expected NAME:OPTION=VALUE.* got '' in 'sapa-b:'"),
        ('sapa-b:kernel_size=', "expected NAME:OPTION=VALUE.* got 'kernel_size=' in"),
        ('sapa-b:=3', "expected NAME:OPTION=VALUE.* got '=3' in"),
        ('fade,sapa-b:kernel_size=3,sapa_b:kernel_size=3', 'expected every upsampler once'),
        ('sapa-b:embed-dims=3', "expected NAME:OPTION=VALUE.* got 'embed-dims=3' in"),
    ],
)
def test_what_is_refused(text, error):
    with pytest.raises(argparse.ArgumentTypeError, match=error):
        choices(text)


def test_every_choice_has_a_config_of_its_own(tmp_path):
    names = ['unchanged', 'bilinear', 'sapa-i', 'sapa-i:temperature=0.5']
    found = write_variants(str(CONFIG), names, {}, tmp_path)
    assert [path.name for path in found.values()] == [
        'unchanged.py',
        'bilinear.py',
        'sapa-i.py',
        'sapa-i-temperature-0-5.py',
    ]
    heads = [Config.fromfile(path).model.decode_head for path in found.values()]
    # SegFormer's own head resizes each feature once, the guided one in steps.
    assert heads[0].type == 'SegformerHead' and 'upsample_cfg' not in heads[0]
    assert heads[0] == Config.fromfile(CONFIG).model.decode_head
    assert [head.type for head in heads[1:]] == ['GuidedSegformerHead'] * 3
    assert heads[1].upsample_cfg == dict(type='bilinear')
    assert heads[2].upsample_cfg == dict(type='SAPA', similarity='inner')
    assert heads[3].upsample_cfg == dict(type='SAPA', similarity='inner', temperature=0.5)
    texts = {path.read_text().partition('\n')[2] for path in found.values()}
    assert len(texts) == len(names)


def test_a_path_may_be_spelt_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIG.parent)
    spelt = [CONFIG.name, f'./{CONFIG.name}', str(CONFIG), f'sapa_mm::camvid/{CONFIG.name}']
    texts = set()
    for i, name in enumerate(spelt):
        texts.add(write_variants(name, ['fade'], {}, tmp_path / str(i))['fade'].read_text())
    assert len(texts) == 1


@pytest.mark.parametrize('named', ['BoundaryIoU', 'mmseg.BoundaryIoU'])
def test_boundaries_are_judged_once(tmp_path, named):
    expected = [dict(type=named, widths=[4])]
    base = tmp_path / 'base.py'
    base.write_text(f'_base_ = {str(CONFIG)!r}\ntest_evaluator = {expected!r}\n')
    found = write_variants(str(base), ['fade'], {}, tmp_path / 'configs')
    assert Config.fromfile(found['fade']).test_evaluator == expected


def test_files_have_no_dots():
    assert file_stem('sapa-b:kernel_size=3:temperature=1e-2') == (
        'sapa-b-kernel_size-3-temperature-1e-2'
    )
    assert file_stem('a2u-paired') == 'a2u-paired'
