"""The manual's recipe for an upsampler of one's own, taken from the manual."""

import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
BASE = ROOT / 'configs/_base_/segformer_mit-t_1xb8-600_toy-160x160.py'


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config of the manual, whose import finds the manual's file."""
    manual = ROOT / 'sapa_mm' / 'upsamplers' / 'README.md'
    section = manual.read_text().split('## Your own upsampler')[1]
    code, change = re.findall(r'```python\n(.*?)```', section, re.S)[:2]
    (tmp_path / 'my_upsampler.py').write_text(code)
    (tmp_path / 'mine.py').write_text(f'_base_ = {str(BASE)!r}\n{change}')
    monkeypatch.syspath_prepend(tmp_path)
    yield Config.fromfile(tmp_path / 'mine.py')
    sys.modules.pop('my_upsampler', None)
    ROOT_MODELS.module_dict.pop('GatedBilinear', None)


def test_one_file_and_one_decorator_are_enough(config):
    with DefaultScope.overwrite_default_scope('mmseg'):
        head = MODELS.build(config.model.decode_head).eval()
    assert [type(m).__name__ for m in head.upsamplers.values()] == ['GatedBilinear'] * 6
    upsampler = head.upsamplers['c4_c3']
    x, guide = torch.randn(2, 64, 5, 7), torch.randn(2, 64, 10, 13)
    gate = torch.sigmoid(F.conv2d(guide, upsampler.gate.weight, upsampler.gate.bias))
    expected = gate * F.interpolate(x, (10, 13), mode='bilinear')
    torch.testing.assert_close(upsampler(x, guide), expected)

    features = [torch.randn(1, c, 32 >> i, 40 >> i) for i, c in enumerate([16, 32, 64, 128])]
    head(features).square().sum().backward()
    assert all(m.gate.weight.grad.abs().sum() > 0 for m in head.upsamplers.values())


def test_its_inputs_are_checked(config):
    with DefaultScope.overwrite_default_scope('mmseg'):
        upsampler = MODELS.build(config.model.decode_head).upsamplers['c2_c1']
    with pytest.raises(ValueError, match='guide: expected 64 channels, got 32'):
        upsampler(torch.randn(1, 64, 4, 4), torch.randn(1, 32, 8, 8))
