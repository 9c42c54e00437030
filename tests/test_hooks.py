"""The hooks of the project in runs of mmengine."""

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

import sapa_mm  # noqa: F401


class Images(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return {'inputs': torch.rand(3, 6, 5, generator=generator)}


class Preprocessor(BaseDataPreprocessor):
    def forward(self, data: dict, training: bool = False) -> dict:
        return {'inputs': data['inputs'] - 0.5, 'other': 7}


class Network(BaseModel):
    """Two convolutions that remember how what they computed lies in memory."""

    def __init__(self):
        super().__init__(Preprocessor())
        self.convs = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.channels_last: list[bool] = []
        self.outputs: list[Tensor] = []

    def init_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, inputs: Tensor, other: int, mode: str) -> dict | list:
        assert other == 7
        out = self.convs(inputs)
        for x in (inputs, out):
            self.channels_last.append(x.is_contiguous(memory_format=torch.channels_last))
        self.outputs.append(out.detach())
        return {'loss': out.square().mean()} if mode == 'loss' else list(out)


def run(part: str, hooks: list[dict], work_dir) -> Network:
    loader = dict(
        batch_size=2,
        dataset=Images(),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    kwargs = {
        'train': dict(
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        ),
        'val': dict(val_dataloader=loader, val_cfg={}, val_evaluator=[]),
        'test': dict(test_dataloader=loader, test_cfg={}, test_evaluator=[]),
    }[part]
    torch.manual_seed(0)
    runner = Runner(
        Network(),
        str(work_dir / part),
        **kwargs,
        default_hooks=dict(checkpoint=None),
        custom_hooks=hooks,
        randomness=dict(seed=0),
        log_level='ERROR',
        experiment_name=f'{work_dir.name}-{part}-{len(hooks)}',
    )
    getattr(runner, part)()
    return runner.model


@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_channels_last_changes_the_layout_and_not_what_is_computed(part, tmp_path):
    plain = run(part, [], tmp_path)
    laid_out = run(part, [dict(type='ChannelsLastHook')], tmp_path)
    assert not any(plain.channels_last)
    assert laid_out.channels_last
    assert all(laid_out.channels_last)
    assert laid_out.convs[0].weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(plain.outputs, laid_out.outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
