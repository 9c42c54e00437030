"""Pictures of what trained models predict for the images of their test."""

from collections.abc import Mapping
from pathlib import Path

import mmcv
import numpy as np
from matplotlib import colormaps
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement

import sapa_mm  # noqa: F401  registers what configs name
from sapa_mm.visualization import draw_pictures, draw_segmentations

from .output import write_atomically

Models = Mapping[str, tuple[Config, str]]

# Of a box that is drawn.
SCORE = 0.3


def draw_predictions(path: Path, models: Models, count: int, device: str) -> None:
    """Draw images, their truth and the predictions of several models side by side.

    Args:
        path: File to write; the suffix gives the format.
        models: Title of a column to a model's config and checkpoint. All are of one framework, and
            the first one's ``test_dataloader`` has the images.
        count: How many of them, at equal distances.
        device: Where to predict.
    """
    cfg = next(iter(models.values()))[0]
    draw = _draw_detections if cfg.default_scope == 'mmdet' else _draw_segmentations
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        count = min(count, len(dataset))
        samples = [dataset[i * len(dataset) // count]['data_samples'] for i in range(count)]
        write_atomically(path, lambda part: draw(part, models, dataset, samples, device))


def _draw_segmentations(
    path: Path,
    models: Models,
    dataset: BaseDataset,
    samples: list[BaseDataElement],
    device: str,
) -> None:
    from mmseg.apis import inference_model, init_model

    def classes_of(data: BaseDataElement) -> np.ndarray:
        return data.data[0].cpu().numpy().astype(np.uint8)

    images = [mmcv.imread(sample.img_path) for sample in samples]
    columns = {'truth': [classes_of(sample.gt_sem_seg) for sample in samples]}
    for title, (cfg, checkpoint) in models.items():
        model = init_model(cfg, checkpoint, device=device)
        # One by one: they may differ in size.
        predicted = [inference_model(model, image) for image in images]
        columns[title] = [classes_of(sample.pred_sem_seg) for sample in predicted]
    classes, palette = dataset.metainfo['classes'], dataset.metainfo['palette']
    if len(classes) <= 20:  # easier to tell apart than a few of ADE20K's 150 colours
        palette = 255 * np.array(colormaps['tab20'].colors[: len(classes)])
    draw_segmentations(path, [x[..., ::-1] for x in images], columns, classes, palette)


def _draw_detections(
    path: Path,
    models: Models,
    dataset: BaseDataset,
    samples: list[BaseDataElement],
    device: str,
) -> None:
    from mmdet.apis import inference_detector, init_detector
    from mmdet.structures.bbox import BaseBoxes

    for sample in samples:
        truth = sample.gt_instances
        if isinstance(truth.get('bboxes'), BaseBoxes):  # which the visualizer does not draw
            truth.bboxes = truth.bboxes.tensor
    visualizer = VISUALIZERS.build(
        dict(type='DetLocalVisualizer', name='predictions', line_width=1)
    )
    visualizer.dataset_meta = dataset.metainfo
    images = [mmcv.imread(sample.img_path, channel_order='rgb') for sample in samples]

    def drawn(sample: BaseDataElement, image: np.ndarray, **kind: bool) -> np.ndarray:
        visualizer.add_datasample('', image, sample, pred_score_thr=SCORE, **kind)
        return visualizer.get_image()

    columns = {'image': images}
    columns['truth'] = [
        drawn(sample, image, draw_pred=False) for sample, image in zip(samples, images, strict=True)
    ]
    for title, (cfg, checkpoint) in models.items():
        model = init_detector(cfg, checkpoint, device=device, palette='random')
        columns[title] = [
            drawn(inference_detector(model, image[..., ::-1]).cpu(), image, draw_gt=False)
            for image in images
        ]
    draw_pictures(path, columns)
