import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import save_checkpoint

from sapa_mm.tools import export as tool
from sapa_mm.tools.complexity.count import build
from sapa_mm.tools.presets import upsampler_config
from sapa_mm.upsamplers import build_upsampler

ROOT = Path(__file__).resolve().parents[2]

TOY = ROOT / 'configs' / 'sapa' / 'segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
DETECTOR = ROOT / 'configs' / 'sapa' / 'faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py'
# It has two levels and so one step of upsampling: tracing all six takes a minute.
SMALL = """
_base_ = {base!r}
model = dict(
    backbone=dict(num_stages=2, num_layers=[1, 1], num_heads=[1, 2], patch_sizes=[7, 3],
                  strides=[4, 2], sr_ratios=[8, 4], out_indices=(0, 1)),
    decode_head=dict(in_channels=[16, 32], in_index=[0, 1], channels=16,
                     upsample_cfg=dict(kernel_size=3)),
)
"""


def run(*arguments: object) -> None:
    tool.main([str(argument) for argument in arguments])


def refused(capsys, *arguments: object) -> str:
    """Return the sentence with which the tool refuses."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code not in (None, 0)
    code = stopped.value.code
    return capsys.readouterr().err.splitlines()[-1] if code == 2 else str(code)


def onnx_outputs(path: Path, *inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def test_one_onnx_file_of_an_upsampler_serves_all_sizes(tmp_path, capsys):
    out = tmp_path / 'sapa.onnx'
    run('--upsampler', 'sapa-g', '--channels', 8, 4, '--out', out, '--size', 16, 24)
    printed = capsys.readouterr().out
    assert printed.count('verified at') == 2 and 'batch, height and width' in printed
    assert [path.name for path in tmp_path.iterdir()] == ['sapa.onnx']
    model = onnx.load(out)
    assert {node.domain for node in model.graph.node} == {''} and not model.functions
    torch.manual_seed(0)
    module = build_upsampler(dict(type='SAPA', similarity='gated'), 8, 4).eval()
    for batch, low, high in ((1, (8, 12), (16, 24)), (2, (5, 7), (9, 20)), (3, (6, 6), (6, 6))):
        x, guide = torch.randn(batch, 8, *low), torch.randn(batch, 4, *high)
        with torch.no_grad():
            torch.testing.assert_close(onnx_outputs(out, x, guide), module(x, guide))


@pytest.mark.parametrize(
    ('name', 'operator'),
    [('dysample-plus', 'GridSample'), ('fade', 'Softmax'), ('carafe', 'Slice')],
)
def test_one_onnx_file_of_others_serves_the_sizes_that_they_take(name, operator, tmp_path, capsys):
    out = tmp_path / 'other.onnx'
    run('--upsampler', name, '--channels', 8, '--out', out, '--size', 16, 24)
    assert 'batch, height and width' in capsys.readouterr().out
    model = onnx.load(out)
    assert {node.domain for node in model.graph.node} == {''} and not model.functions
    assert operator in {node.op_type for node in model.graph.node}
    torch.manual_seed(0)
    module = build_upsampler(upsampler_config(name), 8).eval()
    for batch, low, high in ((1, (8, 12), (16, 24)), (2, (5, 7), (9, 13))):
        x, guide = torch.randn(batch, 8, *low), torch.randn(batch, 8, *high)
        with torch.no_grad():
            expected = module(x, guide)
        torch.testing.assert_close(onnx_outputs(out, x, guide), expected, rtol=1e-5, atol=1e-5)


def test_a_program_of_torch_export(tmp_path, capsys):
    out = tmp_path / 'index.pt2'
    run('--upsampler', 'index_net', '--channels', 8, '--out', out, '--size', 16, 24)
    torch.manual_seed(0)
    module = build_upsampler(dict(type='IndexNet', variant='hin'), 8).eval()
    program = torch.export.load(out).module()
    for low, high in (((8, 12), (16, 24)), ((5, 7), (9, 13))):
        x, guide = torch.randn(2, 8, *low), torch.randn(2, 8, *high)
        with torch.no_grad():
            torch.testing.assert_close(program(x, guide), module(x, guide))


def test_a_segmentor(tmp_path, capsys):
    config, out = tmp_path / 'small.py', tmp_path / 'model.onnx'
    config.write_text(SMALL.format(base=str(TOY)))
    run(config, '--out', out, '--size', 64, 96)
    printed = capsys.readouterr().out
    assert 'mean [123.675' in printed and 'RGB' in printed
    assert printed.count('verified at') == 2 and '64 x 96' in printed
    assert {node.domain for node in onnx.load(out).graph.node} == {''}
    for size in ((64, 64), (97, 129)):
        assert onnx_outputs(out, torch.randn(1, 3, *size)).shape == (1, 11, *size)


def test_a_file_that_differs_is_not_kept(tmp_path, capsys):
    arguments = ('--upsampler', 'sapa-b', '--channels', 4, '--tolerance', 0)
    sentence = refused(capsys, *arguments, '--out', tmp_path / 'x.onnx')
    assert 'differs by' in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ((), 'expected a CONFIG or --upsampler, got neither'),
        ((TOY, '--upsampler', 'carafe', '--channels', 4), 'got both'),
        (('--upsampler', 'carafe'), '--channels'),
        (('--upsampler', 'nothing', '--channels', 4), 'sapa-b'),
        (('--upsampler', 'sapa-i', '--channels', 4, 8), 'expected 4'),
        (('missing.py',), "no file 'missing.py'"),
        ((TOY, 'missing.pth'), "no file 'missing.pth'"),
        ((DETECTOR,), 'detectors are not exported'),
        ((TOY, '--opset', 9), 'expected 18 to'),
        ((TOY, '--size', 1, 0), 'positive'),
    ],
)
def test_refusals(tmp_path, capsys, arguments, words):
    assert words in refused(capsys, *arguments, '--out', tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_the_upsamplers_weights(tmp_path, capsys):
    config, stock, out = (tmp_path / name for name in ('small.py', 'stock.pth', 'model.onnx'))
    config.write_text(SMALL.format(base=str(TOY)))
    cfg = Config.fromfile(config)
    cfg.model.decode_head.type = 'SegformerHead'
    del cfg.model.decode_head.upsample_cfg
    save_checkpoint(dict(state_dict=build(cfg).state_dict()), str(stock))
    sentence = refused(capsys, config, stock, '--out', out)
    assert f'{stock} has no weights for upsamplers of {config}' in sentence
    assert 'decode_head.upsamplers.c2_c1.query_proj.weight' in sentence
    assert f'load_from={stock}' in sentence
    assert not out.exists()


def test_a_file_of_no_known_kind(tmp_path, capsys):
    assert '.onnx or .pt2' in refused(capsys, TOY, '--out', tmp_path / 'model.pb')


def test_missing_packages(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    sentence = refused(capsys, TOY, '--out', tmp_path / 'model.onnx')
    assert 'pip install onnxscript' in sentence
