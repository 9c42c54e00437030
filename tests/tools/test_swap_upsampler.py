"""tools/swap_upsampler.py changes what must change, and nothing else."""

from pathlib import Path

import pytest
from mmengine.config import Config
from testing_configs import ROOT, build, load, offline, step_and_predict

from sapa_mm.tools import swap

SAPA_B = dict(type='SAPA', similarity='bilinear')
SEGFORMER = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
TOY = str(ROOT / 'configs/_base_/segformer_mit-t_1xb8-600_toy-160x160.py')


def run(config: str | Path, out: Path, *options: str, name: str = 'sapa-b') -> None:
    arguments = [config, '--upsampler', name, '--out', out, *options]
    swap.main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture, *arguments: object, **options: str) -> str:
    """The sentence with which the tool refuses."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, **options)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ('name', 'hosts'),
    [
        (SEGFORMER, dict(decode_head='GuidedSegformerHead')),
        (
            'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
            dict(neck='GuidedFPN', decode_head='GuidedFPNHead'),
        ),
        (
            'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
            dict(decode_head='GuidedUPerHead'),
        ),
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', dict(neck='GuidedFPN')),
        ('mmdet::pafpn/faster-rcnn_r50_pafpn_1x_coco.py', dict(neck='GuidedPAFPN')),
        ('mmdet::yolox/yolox_s_8xb8-300e_coco.py', dict(neck='GuidedYOLOXPAFPN')),
        ('mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', dict(neck='GuidedCSPNeXtPAFPN')),
        ('mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py', dict(neck='GuidedCSPNeXtPAFPN')),
    ],
)
def test_the_types_of_the_hosts_and_nothing_else(tmp_path, capsys, name, hosts):
    out = tmp_path / 'my.py'
    run(name, out)
    printed = capsys.readouterr().out
    stock, new = load(name), Config.fromfile(out)
    expected = stock.to_dict()
    expected['custom_imports'] = dict(imports=['sapa_mm'], allow_failed_imports=False)
    for part, kind in hosts.items():
        assert f'model.{part}: {expected["model"][part]["type"]} -> {kind}' in printed
        expected['model'][part] |= dict(type=kind, upsample_cfg=SAPA_B)
    assert new.to_dict() == expected
    before, after = (sum(p.numel() for p in build(offline(c)).parameters()) for c in (stock, new))
    assert after > before
    assert f'parameters: +{after - before:,}' in printed


def test_a_published_carafe_detector_fits_what_is_made_of_its_config(tmp_path):
    name, out = 'mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py', tmp_path / 'my.py'
    run(name, out, name='carafe')
    stock, new = load(name), Config.fromfile(out)
    expected = stock.to_dict()['model']
    expected['neck'] |= dict(type='GuidedFPN_CARAFE', upsample_cfg=dict(type='CARAFE'))
    assert new.to_dict()['model'] == expected
    published, ours = build(offline(stock)), build(offline(new))
    ours.load_state_dict(published.state_dict(), strict=True)
    weights = published.neck.upsample_modules[3].content_encoder.weight
    assert ours.neck.upsamplers['c5_c4'].content_encoder.weight.equal(weights)


def test_a_pixel_decoder_keeps_its_scope(tmp_path):
    out = tmp_path / 'my.py'
    run('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', out, name='carafe')
    decoder = Config.fromfile(out).model.decode_head.pixel_decoder
    assert decoder.type == 'mmdet.GuidedMSDeformAttnPixelDecoder'
    assert decoder.upsample_cfg == dict(type='CARAFE')
    assert decoder.num_outs == 3


def test_a_neck_in_a_list(tmp_path):
    name, out = 'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py', tmp_path / 'my.py'
    run(name, out)
    expected = load(name).to_dict()['model']['neck']
    expected[0] |= dict(type='GuidedFPN', upsample_cfg=SAPA_B)
    assert Config.fromfile(out).to_dict()['model']['neck'] == expected


def test_the_users_own_imports_and_interpolation(tmp_path):
    mine, out = tmp_path / 'mine.py', tmp_path / 'deeper' / 'my.py'
    out.parent.mkdir()
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
        "custom_imports = dict(imports=['json', 'csv'], allow_failed_imports=True)\n"
        "model = dict(neck=dict(upsample_cfg=dict(mode='bilinear')))\n"
    )
    run(mine, out, '--options', 'kernel_size=3', 'embed_dims=16')
    assert "_base_ = '../mine.py'" in out.read_text()
    cfg = Config.fromfile(out)
    assert cfg.custom_imports == dict(imports=['json', 'csv', 'sapa_mm'], allow_failed_imports=True)
    assert cfg.model.neck.upsample_cfg == SAPA_B | dict(kernel_size=3, embed_dims=16)


def test_an_option_that_the_guided_head_does_not_have(tmp_path):
    mine, out = tmp_path / 'mine.py', tmp_path / 'my.py'
    mine.write_text(
        f"_base_ = {SEGFORMER!r}\nmodel = dict(decode_head=dict(interpolate_mode='nearest'))\n"
    )
    run(mine, out)
    expected = load(SEGFORMER).to_dict()['model']['decode_head']
    expected |= dict(type='GuidedSegformerHead', upsample_cfg=SAPA_B)
    assert Config.fromfile(out).to_dict()['model']['decode_head'] == expected


def test_another_upsampler_than_the_configs_own(tmp_path):
    name = ROOT / 'configs/sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py'
    run(name, tmp_path / 'my.py', name='index_net')
    head = Config.fromfile(tmp_path / 'my.py').model.decode_head
    assert head.type == 'GuidedSegformerHead'
    assert head.upsample_cfg == dict(type='IndexNet', variant='hin')


# SegFormer has no use for an upsampler that also downsamples.
@pytest.mark.parametrize('name', sorted(set(swap.upsampler_names()) - {'a2u-paired'}))
def test_every_upsampler_trains_and_predicts(tmp_path, name):
    run(TOY, tmp_path / 'my.py', name=name)
    cfg = offline(Config.fromfile(tmp_path / 'my.py'))
    step_and_predict(cfg, build(cfg))


def test_refusals_write_nothing(tmp_path, capsys):
    out = tmp_path / 'my.py'
    stock = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
    sentence = refused(capsys, stock, out)
    assert 'SegformerHead, SegNetHead, UPerHead' in sentence and 'decode_head: PSPHead' in sentence
    assert "got 'sappa'" in refused(capsys, SEGFORMER, out, name='sappa')
    assert 'no file' in refused(capsys, tmp_path / 'none.py', out)
    assert 'kernel_size' in refused(capsys, TOY, out, '--options', 'kernel_size=4')
    assert 'ends in .py' in refused(capsys, TOY, tmp_path / 'my.txt')
    sentence = refused(capsys, TOY, out, name='a2u-paired')
    assert 'model.decode_head: GuidedSegformerHead does not downsample' in sentence
    assert not list(tmp_path.iterdir())
    out.write_text('mine')
    for force in ([], ['--force']):
        assert 'is not of this tool alone' in refused(capsys, TOY, out, *force)
    assert out.read_text() == 'mine'
    out.unlink()
    run(TOY, out, name='carafe')
    written = out.read_text()
    assert '--force replaces it' in refused(capsys, TOY, out)
    # It would become its own base.
    assert 'is not of this tool alone' in refused(capsys, out, out, '--force')
    assert out.read_text() == written
    run(TOY, out, '--force')
    assert Config.fromfile(out).model.decode_head.upsample_cfg == SAPA_B
