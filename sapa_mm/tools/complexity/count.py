"""What `complexity.py` counts: parameters and multiply-adds of a model and its upsampling steps.

A model's figure is mmengine's, in which every upsampler that has a method ``flops`` counts as that
says; what mmengine made of its layers is taken out. mmengine traces the model, which neither meta
nor fake tensors allow (their kernels cannot use sizes that are traced), so it runs once, on the
CPU, with random weights.
"""

import contextlib
import copy
import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...upsamplers.inspection import describe_upsampler, iter_upsamplers

Size = tuple[int, int]


@dataclasses.dataclass
class Step:
    """A `Step` is an upsampling step: a module among the ``upsamplers`` of a host.

    Attributes:
        host: Path of the host in the model, such as ``'decode_head'``.
        name: Name of the step, such as ``'c4_c3'``.
        kind: Type of the upsampler, with what names its variant.
        sizes: (H, W) of x and (Hg, Wg) of the guide, in every call.
        params: Parameters.
        flops: Multiply-adds of one image, in all calls; 0 until they are counted.
        exact: Whether they are the upsampler's own figure rather than mmengine's.
    """

    host: str
    name: str
    kind: str
    sizes: list[tuple[Size, Size]]
    params: int
    flops: int
    exact: bool

    @property
    def path(self) -> str:
        """Path of the upsampler in the model."""
        return '.'.join([*filter(None, [self.host]), 'upsamplers', self.name])


@dataclasses.dataclass
class Complexity:
    """A `Complexity` is what was counted of a model that takes one image.

    Attributes:
        model: Type of the model.
        shape: (C, H, W) of the image.
        params: Parameters, without those of auxiliary heads.
        flops: Multiply-adds.
        proposals: How many boxes a two-stage detector's RoI head got; None for other models.
        steps: The upsampling steps.
        uncounted: Operators outside the exact steps that add nothing to ``flops``, and how often
            they ran.
    """

    model: str
    shape: tuple[int, int, int]
    params: int
    flops: int
    proposals: int | None
    steps: list[Step]
    uncounted: dict[str, int]


def count_parameters(module: nn.Module) -> int:
    """Count the parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def find_steps(model: nn.Module) -> list[tuple[Step, Any]]:
    """Return every step of a model, not yet counted, and its upsampler, an `nn.Module`."""
    found: list[tuple[Step, Any]] = []
    for path, name, upsampler in iter_upsamplers(model):
        params = count_parameters(upsampler)
        exact = hasattr(upsampler, 'flops')
        step = Step(path, name, describe_upsampler(upsampler), [], params, 0, exact)
        found.append((step, upsampler))
    return found


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[list[Step]]:
    """Give the steps of a model, and complete them by what happens inside the block.

    Whatever the upsamplers are called with there is recorded, and at its end those that have
    ``flops`` are counted by that.
    """
    steps = find_steps(model)
    handles = []
    for step, upsampler in steps:

        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], step: Step = step
        ) -> None:
            x, guide, *_ = inspect.signature(module.forward).bind(*args, **kwargs).args
            (low_h, low_w), (high_h, high_w) = x.shape[2:], guide.shape[2:]
            # In a trace a size is a tensor.
            step.sizes.append(((int(low_h), int(low_w)), (int(high_h), int(high_w))))

        handles.append(upsampler.register_forward_pre_hook(record, with_kwargs=True))
    try:
        yield [step for step, _ in steps]
    finally:
        for handle in handles:
            handle.remove()
    for step, upsampler in steps:
        if step.exact:
            step.flops = sum(upsampler.flops(*sizes) for sizes in step.sizes)


class Pass(nn.Module):
    """A `Pass` is the forward pass that is counted: backbone, neck and heads, nothing behind them.

    That is what ``get_flops.py`` of mmsegmentation and mmdetection count. Unlike the former it
    knows mask classification heads, which want data samples; unlike the latter, which takes what
    images of the dataset give, it passes a RoI head the largest number of proposals, each of them
    the whole image.

    Args:
        model: The model, a `torch.nn.Module`; auxiliary heads are removed from it.
        size: (H, W) of the image.
    """

    def __init__(self, model: Any, size: Size):
        super().__init__()
        if getattr(model, 'auxiliary_head', None) is not None:
            model.auxiliary_head = None
        self.model: Any = model
        self.size = size
        self.proposals = self._fix_proposals()
        for step, upsampler in find_steps(self):
            if hasattr(upsampler, 'encode'):
                upsampler.encode = self._attribute(upsampler.encode, step.path)

    def _fix_proposals(self) -> int | None:
        """Let a region proposal network propose whole images.

        Returns:
            How many it proposes; None without such a network.
        """
        rpn = getattr(self.model, 'rpn_head', None)
        if rpn is None:
            return None
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmengine.structures import InstanceData

        if not isinstance(rpn, BaseDenseHead):  # learned proposals, whose number is fixed
            return None
        number, predict = rpn.test_cfg['max_per_img'], rpn.predict
        boxes = torch.tensor([[0.0, 0.0, *self.size[::-1]]]).repeat(number, 1)

        def predict_fixed(*args: Any, **kwargs: Any) -> list[InstanceData]:
            predict(*args, **kwargs)
            return [InstanceData(bboxes=boxes, scores=torch.ones(number))]

        rpn.predict = predict_fixed
        return number

    @staticmethod
    def _attribute(method: Callable[..., Any], path: str) -> Callable[..., Any]:
        """Attribute what a method runs to the module at ``path``, as mmengine does with calls."""

        def attributed(*args: Any, **kwargs: Any) -> Any:
            trace = torch._C._get_tracing_state()
            trace.push_scope(path)
            result = method(*args, **kwargs)
            trace.pop_scope()
            return result

        return attributed

    def _samples(self) -> list[BaseDataElement]:
        """Make the data samples of the batch: one without annotations."""
        return [blank_sample(DefaultScope.get_current_instance().scope_name, self.size)]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Run the model on ``image`` (1, C, H, W) and return all tensors among the results."""
        head = getattr(self.model, 'decode_head', None)
        if head is not None and takes(head, 'batch_data_samples'):
            results = head(self.model.extract_feat(image), self._samples())
        elif takes(self.model, 'data_samples'):
            results = self.model(image, self._samples())
        else:
            results = self.model(image)
        return [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]


def blank_sample(scope: str, size: Size) -> BaseDataElement:
    """Make a data sample without annotations.

    Args:
        scope: ``'mmseg'`` or ``'mmdet'``, whose sample it is.
        size: (H, W) of the image.
    """
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    names = ('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape')
    return Sample(metainfo={**dict.fromkeys(names, size), 'scale_factor': (1.0, 1.0)})


def takes(module: nn.Module, argument: str) -> bool:
    """Return whether a module's forward has this argument."""
    return argument in inspect.signature(module.forward).parameters


def product_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the multiply-adds of ``baddbmm``: (B, M, K) times (B, K, N)."""
    return math.prod(outputs[0].type().sizes()) * inputs[1].type().sizes()[-1]


def attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count those of ``scaled_dot_product_attention``: query times key, and that times value."""
    query, key, value = (value.type().sizes() for value in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def similarity_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the multiply-adds of ``local_similarity``: D for every score."""
    return math.prod(outputs[0].type().sizes()) * inputs[0].type().sizes()[1]


def assembly_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the multiply-adds of ``assemble``: K * K for every value."""
    return math.prod(outputs[0].type().sizes()) * inputs[2].toIValue() ** 2


def affiliation_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the multiply-adds of ``point_affiliation``: K * K (D + C) for every pixel."""
    batch, channels, height, width = outputs[0].type().sizes()
    dims = inputs[0].type().sizes()[1] + channels
    return batch * height * width * inputs[3].toIValue() ** 2 * dims


def embedding_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the multiply-adds of ``embed``: C for every value, if there is a projection."""
    if inputs[1].type().kind() == 'NoneType':
        return 0
    return math.prod(outputs[0].type().sizes()) * inputs[1].type().sizes()[1]


# mmengine does not count these operators.
PRODUCTS = {
    'aten::baddbmm': product_flops,
    'aten::scaled_dot_product_attention': attention_flops,
    'sapa_mm::local_similarity': similarity_flops,
    'sapa_mm::assemble': assembly_flops,
    'sapa_mm::point_affiliation': affiliation_flops,
    'sapa_mm::embed': embedding_flops,
}


def input_channels(model: nn.Module) -> int:
    """Return the channels of the image: those that the first convolution takes.

    mmdetection's ``Focus``, where YOLOX begins, makes four channels of one before it.
    """
    pixels = 1
    for module in model.modules():
        if type(module).__name__ == 'Focus':
            pixels = 4
        elif isinstance(module, nn.Conv2d):
            return module.in_channels // pixels
    return 3


def build(cfg: Config) -> nn.Module:
    """Build the model of a config, with random weights, for inference."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the frameworks warn about losses and older versions
        # A segmentor writes into what it is built from.
        return revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model))).eval()


def count(cfg: Config, size: Size) -> Complexity:
    """Build the model of a config and count it.

    Args:
        cfg: Config of a model of mmsegmentation or mmdetection. Weights are not read or downloaded.
        size: (H, W) of the image.

    Returns:
        What was counted.

    Raises:
        Exception: Whatever the model raises when it is built or when it runs.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(DefaultScope.overwrite_default_scope(cfg.default_scope))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.no_grad())
        warnings.simplefilter('ignore')
        model = build(cfg)
        shape = (input_channels(model), *size)
        counted = Pass(model, size)
        analyzer = FlopAnalyzer(counted, (torch.rand(1, *shape),))
        analyzer.set_op_handle(**PRODUCTS).tracer_warnings('none')
        analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        with recording(model) as steps:
            flops, uncounted = analyzer.total(), analyzer.unsupported_ops()

    replaced = set()
    for step in steps:
        path = analyzer.canonical_module_name(f'model.{step.path}')
        if not step.exact:
            step.flops = int(analyzer.total(path))
            continue
        flops += step.flops
        if path not in replaced:
            replaced.add(path)
            flops -= analyzer.total(path)
            uncounted = uncounted - analyzer.unsupported_ops(path)
    uncounted = {name.rpartition('::')[2]: number for name, number in uncounted.most_common()}
    return Complexity(
        type(model).__name__,
        shape,
        count_parameters(model),
        int(flops),
        counted.proposals,
        steps,
        uncounted,
    )
