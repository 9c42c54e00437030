"""Draws what trained models predict for the images of their test."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement, PixelData

from ..visualization import draw_depths, draw_mattes, draw_pictures, draw_segmentations
from .errors import ToolError
from .inference import load_model, predict, read_images
from .output import write_atomically

Models = Mapping[str, tuple[Config, str]]
Columns = dict[str, Sequence[np.ndarray]]

# A box with less than this score is not drawn.
SCORE = 0.3
# Up to so many classes get colours that are easier to tell apart than those of a data set.
FEW_CLASSES = 20


def draw_predictions(path: Path, models: Models, count: int, device: str) -> None:
    """Draw images, their truth and the predictions of several models side by side.

    Args:
        path: File to write; the suffix gives the format.
        models: Title of a column to a model's config and checkpoint. All are of one framework, and
            the first one's ``test_dataloader`` has the images.
        count: How many of them, at equal distances.
        device: Where to predict.

    Raises:
        ToolError: A checkpoint does not fit its config, or the test has no truth to draw.
    """
    cfg = next(iter(models.values()))[0]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        count = min(count, len(dataset))
        samples = [dataset[i * len(dataset) // count]['data_samples'] for i in range(count)]
        truth = next((truth for truth in DRAW if truth in samples[0]), None)
        if truth is None:
            expected, got = ', '.join(DRAW), ', '.join(samples[0].keys()) or 'none'
            raise ToolError(
                f'test_dataloader: expected images with one of {expected}, got {got}: its pipeline '
                'has to load their truth'
            )
        draw = DRAW[truth]
        write_atomically(path, lambda part: draw(part, models, dataset, samples, device))


def _read_images(samples: Sequence[BaseDataElement]) -> list[np.ndarray]:
    """Read the images of data samples, (H, W, 3), BGR."""
    return read_images([Path(sample.img_path) for sample in samples])


def _predict(
    models: Models, device: str, *inputs: Sequence[np.ndarray]
) -> Iterator[tuple[str, list[BaseDataElement]]]:
    """Yield each model's title and its predictions; ``inputs`` are as `predict` takes them."""
    for title, (cfg, checkpoint) in models.items():
        model = load_model(cfg, checkpoint, device)
        yield title, [predict(model, *given) for given in zip(*inputs, strict=True)]


def _draw_segmentations(
    path: Path,
    models: Models,
    dataset: BaseDataset,
    samples: list[BaseDataElement],
    device: str,
) -> None:
    def classes_of(data: BaseDataElement) -> np.ndarray:
        return data.data[0].cpu().numpy().astype(np.uint8)

    images = _read_images(samples)
    columns: Columns = {'truth': [classes_of(sample.gt_sem_seg) for sample in samples]}
    for title, found in _predict(models, device, images):
        columns[title] = [classes_of(sample.pred_sem_seg) for sample in found]
    classes, palette = dataset.metainfo['classes'], dataset.metainfo['palette']
    if len(classes) <= FEW_CLASSES:
        colours = colormaps['tab20'](np.arange(len(classes)))
        palette = 255 * colours[:, :3]
    draw_segmentations(path, [image[..., ::-1] for image in images], columns, classes, palette)


def _draw_depths(
    path: Path,
    models: Models,
    dataset: BaseDataset,
    samples: list[BaseDataElement],
    device: str,
) -> None:
    # Not above: it needs mmseg, which detectors do without.
    from ..depth.edges import depth_edges

    def depth_of(data: PixelData) -> np.ndarray:
        return data.data[0].float().cpu().numpy()

    images = _read_images(samples)
    truths = [depth_of(sample.gt_depth_map) for sample in samples]
    columns = {
        title: [depth_of(sample.pred_depth_map) for sample in found]
        for title, found in _predict(models, device, images)
    }
    shown = [image[..., ::-1] for image in images]
    draw_depths(path, shown, columns, truths, find_edges=depth_edges)


def _draw_mattes(
    path: Path,
    models: Models,
    dataset: BaseDataset,
    samples: list[BaseDataElement],
    device: str,
) -> None:
    def plane(data: PixelData) -> np.ndarray:
        return data.data[0].cpu().numpy()

    images = _read_images(samples)
    trimaps = [plane(sample.trimap) for sample in samples]
    columns = {
        title: [plane(sample.pred_alpha) for sample in found]
        for title, found in _predict(models, device, images, trimaps)
    }
    shown = [image[..., ::-1] for image in images]
    draw_mattes(path, shown, trimaps, columns, [plane(sample.gt_alpha) for sample in samples])


def _draw_detections(
    path: Path,
    models: Models,
    dataset: BaseDataset,
    samples: list[BaseDataElement],
    device: str,
) -> None:
    from mmdet.structures.bbox import BaseBoxes

    for sample in samples:
        truth = sample.gt_instances
        if isinstance(truth.get('bboxes'), BaseBoxes):  # the visualizer draws tensors alone
            truth.bboxes = truth.bboxes.tensor
    visualizer = VISUALIZERS.build(
        dict(type='DetLocalVisualizer', name='predictions', line_width=1)
    )
    visualizer.dataset_meta = dataset.metainfo
    images = _read_images(samples)
    shown = [np.ascontiguousarray(image[..., ::-1]) for image in images]

    def drawn(sample: BaseDataElement, image: np.ndarray, **kind: bool) -> np.ndarray:
        visualizer.add_datasample('', image, sample, pred_score_thr=SCORE, **kind)
        return visualizer.get_image()

    columns: Columns = {'image': shown}
    columns['truth'] = [
        drawn(sample, image, draw_pred=False) for sample, image in zip(samples, shown, strict=True)
    ]
    for title, found in _predict(models, device, images):
        columns[title] = [
            drawn(sample.cpu(), rgb, draw_gt=False)
            for sample, rgb in zip(found, shown, strict=True)
        ]
    draw_pictures(path, columns)


#: How samples are drawn, by the truth that they have; of several the first in this order counts.
DRAW = {
    'gt_instances': _draw_detections,
    'gt_alpha': _draw_mattes,
    'gt_depth_map': _draw_depths,
    'gt_sem_seg': _draw_segmentations,
}
