"""The frameworks' inferencers predict with the configs and checkpoints of this project."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmseg.apis import MMSegInferencer
from mmseg.structures import SegDataSample
from PIL import Image
from testing_configs import load

CONFIGS = {
    'segformer': 'sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py',
    'hc': 'hc/hcfcn-32-tiny_r18-l3_1xb8-600_toy-160x160.py',
    'faster-rcnn': 'sapa/faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py',
}
SIZE = 64  # of the toy images

# A new process that knows of this project what the config says, and nothing else.
PREDICT = """
import json, pickle, sys
import torch
from {package}.apis import {inferencer}

config, weights, image, out_dir = sys.argv[1:]
imported = 'sapa_mm' in sys.modules
try:
    torch.load(weights)
    refused = False
except pickle.UnpicklingError:
    refused = True
inferencer = {inferencer}(config, weights, device='cpu')
found = inferencer(image, out_dir=out_dir)['predictions']
if '{package}' == 'mmseg':
    found = found.tolist()
with open('report.json', 'w') as file:
    json.dump(dict(imported=imported, refused=refused, found=found), file)
"""


class Trained(NamedTuple):
    """What a run left."""

    config: Path
    checkpoint: Path
    images: list[Path]

    @property
    def inferencer(self) -> MMSegInferencer | DetInferencer:
        is_detector = Config.fromfile(self.config).default_scope == 'mmdet'
        kind = DetInferencer if is_detector else MMSegInferencer
        return kind(str(self.config), str(self.checkpoint), device='cpu')


@pytest.fixture(scope='module')
def trained(request, toy_data, tmp_path_factory) -> Trained:
    """The model of that name, after four iterations of mmengine's Runner."""
    cfg = copy.deepcopy(load(CONFIGS[request.param]))
    is_detector = cfg.default_scope == 'mmdet'
    folder = toy_data / ('coco' if is_detector else 'ade')
    cfg.train_dataloader.dataset.data_root = f'{folder}/'
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.max_iters = 4
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'custom_hooks'):
        cfg[key] = None
    if is_detector:
        # Untrained scores are small.
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    else:
        cfg.model.data_preprocessor.size = (SIZE, SIZE)
        # With the usual 0.01 and 0.1 the bias decides, and there is a single class.
        head = cfg.model.decode_head
        head.init_cfg = dict(type='Normal', std=1.0, override=dict(name='conv_seg'))
        for part in (cfg.model.backbone, head):
            if part.get('norm_cfg', {}).get('type') == 'BN':
                part.norm_cfg.momentum = 0.9
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=4)
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(tmp_path_factory.mktemp(request.param))
    cfg.log_level = 'ERROR'
    Runner.from_cfg(cfg).train()
    work_dir = Path(cfg.work_dir)
    images = sorted((folder / ('val2017' if is_detector else 'images/validation')).glob('*.jpg'))
    assert len(images) == 2
    return Trained(work_dir / Path(CONFIGS[request.param]).name, work_dir / 'iter_4.pth', images)


def by_hand(trained: Trained) -> list:
    """What the model predicts for the images, without a pipeline and an inferencer."""
    cfg = Config.fromfile(trained.config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(trained.checkpoint), strict=True)
    predictions = []
    for path in trained.images:
        image = torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1)
        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (SIZE, SIZE))
        kind = DetDataSample if cfg.default_scope == 'mmdet' else SegDataSample
        sample = kind(metainfo=dict(shapes, scale_factor=(1.0, 1.0)))
        with torch.no_grad():
            (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
        if cfg.default_scope == 'mmdet':
            found = result.pred_instances
            assert len(found) == 100
            predictions.append({key: found[key].tolist() for key in ('bboxes', 'scores', 'labels')})
        else:
            predictions.append(result.pred_sem_seg.data[0].numpy())
    # Two predictions that agree, or a single class, would show little.
    assert not same(*predictions)
    assert cfg.default_scope == 'mmdet' or len(np.unique(predictions)) > 1
    return predictions


def same(actual: dict | np.ndarray, expected: dict | np.ndarray) -> bool:
    """Whether two predictions agree in every bit."""
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(
            np.array_equal(actual[key], expected[key]) for key in expected
        )
    return np.array_equal(actual, expected)


@pytest.mark.parametrize('trained', CONFIGS, indirect=True)
def test_paths_arrays_and_folders(trained, tmp_path):
    expected = by_hand(trained)
    inferencer = trained.inferencer
    paths = [str(path) for path in trained.images]
    found = inferencer(paths)['predictions']
    assert len(found) == 2
    assert all(map(same, found, expected))
    arrays = [cv2.imread(path) for path in paths]
    found = inferencer(arrays, out_dir=str(tmp_path / 'arrays'))['predictions']
    assert all(map(same, found, expected))
    assert len(list((tmp_path / 'arrays' / 'vis').iterdir())) == 2

    found = inferencer(str(trained.images[0].parent), out_dir=str(tmp_path / 'folder'))
    # In the order of the folder, which is any.
    found = found['predictions']
    assert len(found) == 2
    assert all(any(same(one, want) for one in found) for want in expected)
    pictures = tmp_path / 'folder' / 'vis'
    assert {path.name for path in pictures.iterdir()} == {path.name for path in trained.images}

    dataset = Config.fromfile(trained.config).train_dataloader.dataset
    if 'metainfo' in dataset:
        assert tuple(inferencer.model.dataset_meta['classes']) == tuple(dataset.metainfo.classes)


@pytest.mark.parametrize('trained', ['segformer', 'faster-rcnn'], indirect=True)
def test_config_and_checkpoint_suffice_in_a_new_process(trained, tmp_path):
    expected = by_hand(trained)[0]
    names = {dict: ('mmdet', 'DetInferencer'), np.ndarray: ('mmseg', 'MMSegInferencer')}
    package, inferencer = names[type(expected)]
    done = subprocess.run(
        [
            *(sys.executable, '-c', PREDICT.format(package=package, inferencer=inferencer)),
            *(trained.config, trained.checkpoint, trained.images[0], tmp_path / 'out'),
        ],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'report.json').read_text())
    assert not report['imported']
    assert report['refused'] == (torch.__version__ >= (2, 6))
    found = report['found']
    assert same(found[0] if package == 'mmdet' else np.array(found), expected)
    picture = Image.open(tmp_path / 'out' / 'vis' / trained.images[0].name).convert('RGB')
    assert picture.size == (SIZE, SIZE)
    change = np.abs(np.asarray(picture, int) - np.asarray(Image.open(trained.images[0]), int))
    assert package == 'mmdet' or change.mean() > 10  # no box is likely enough to be drawn


@pytest.mark.parametrize('trained', ['faster-rcnn'], indirect=True)
def test_a_detectors_checkpoint_has_its_config(trained):
    inferencer = DetInferencer(weights=str(trained.checkpoint), device='cpu')
    (found,) = inferencer(str(trained.images[0]))['predictions']
    assert same(found, by_hand(trained)[0])
