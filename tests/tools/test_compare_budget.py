"""Equal training time: schedules are shortened by hand-computed ratios, and paces decided."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

from sapa_mm.tools.compare import pace
from sapa_mm.tools.compare.history import Logging
from sapa_mm.tools.compare.runs import Run, share
from sapa_mm.tools.compare.schedule import shrink
from sapa_mm.tools.configs import own_configs
from sapa_mm.tools.errors import ToolError


def shrunken(length: int, schedulers: object = None, **cfg: object) -> Config:
    train = cfg.pop('train_cfg', dict(type='IterBasedTrainLoop', max_iters=600, val_interval=100))
    found = Config(dict(train_cfg=train, param_scheduler=schedulers, **cfg))
    shrink(found, length)
    return found


@pytest.mark.parametrize(
    ('scheduler', 'expected'),
    [
        # Of 600 iterations 250 stay: 5/12 of each position, rounded down.
        (dict(type='LinearLR', begin=0, end=30), dict(begin=0, end=12)),
        (dict(type='LinearLR', begin=0, end=3), dict(begin=0, end=2)),
        (dict(type='LinearLR', begin=0, end=1), dict(begin=0, end=1)),
        (dict(type='mmengine.ConstantLR', begin=5, end=8), dict(begin=2, end=4)),
        (dict(type='PolyLR', begin=30, end=600, power=0.9), dict(begin=12, end=250, power=0.9)),
        (dict(type='PolyLR', begin=7, end=8), dict(begin=2, end=3)),
        (dict(type='PolyLR', begin=30), dict(begin=12)),
        (dict(type='PolyLR', end=10**9), dict(end=10**9)),
        (dict(type='PolyLR', end=math.inf), dict(end=math.inf)),
        (dict(type='CosineAnnealingLR', T_max=570, begin=30), dict(T_max=237, begin=12)),
        (dict(type='StepLR', step_size=50, gamma=0.5), dict(step_size=20, gamma=0.5)),
        (dict(type='StepLR', step_size=2), dict(step_size=1)),
        (dict(type='MultiStepLR', milestones=[1, 400, 550]), dict(milestones=[1, 166, 229])),
        # 100, 300, 600 become 41, 125, 250.
        (dict(type='CosineRestartLR', periods=[100, 200, 300]), dict(periods=[41, 84, 125])),
        (dict(type='OneCycleLR', total_steps=600, pct_start=0.3), dict(total_steps=250)),
        (dict(type='ExponentialLR', gamma=0.9, end=120), dict(gamma=0.9, end=50)),
        (dict(type='ReduceOnPlateauLR', patience=3), dict(patience=3)),
        (dict(type='LinearLR', end=48, by_epoch=True, convert_to_iter_based=True), dict(end=20)),
    ],
)
def test_every_kind_of_scheduler_is_shortened(scheduler, expected):
    found = shrunken(250, [scheduler]).param_scheduler[0]
    assert found == {**scheduler, **expected}


def test_a_shortened_schedule_ends_at_the_same_rate_and_warms_up():
    """mmengine's own schedulers run the shortened schedule to the end of the whole one."""

    def rates(length: int) -> list[float]:
        warm_up = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30)
        decay = dict(type='PolyLR', eta_min=0.1, power=1.0, by_epoch=False, begin=30, end=600)
        cfgs = [warm_up, decay] if length == 600 else shrunken(length, [warm_up, decay])
        cfgs = cfgs if length == 600 else cfgs.param_scheduler
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        schedulers = [PARAM_SCHEDULERS.build({**cfg, 'optimizer': optimizer}) for cfg in cfgs]
        found = []
        for _ in range(length):
            found.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        return found

    for length in (250, 60, 40):  # of a warm-up 12, 3 and 2 iterations stay
        whole, short = rates(600), rates(length)
        assert short[0] == whole[0] == pytest.approx(0.02)
        assert max(short) == pytest.approx(2.0)
        assert short[-1] == pytest.approx(0.1) == pytest.approx(whole[-1])


def test_one_scheduler_and_those_of_several_optimizers_are_shortened():
    assert shrunken(300, dict(type='PolyLR', end=600)).param_scheduler.end == 300
    several = dict(a=[dict(type='PolyLR', end=600)], b=dict(type='StepLR', step_size=10))
    found = shrunken(300, several).param_scheduler
    assert found.a[0].end == 300 and found.b.step_size == 5


def test_intervals_and_hooks_are_shortened_and_the_last_is_saved():
    found = shrunken(
        250,
        train_cfg=dict(max_iters=600, val_interval=100, val_begin=60, dynamic_intervals=[(500, 1)]),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=50, save_last=False, max_keep_ckpts=1),
            logger=dict(type='LoggerHook', interval=20),
        ),
        custom_hooks=[dict(type='EMAHook', begin_iter=120)],
    )
    assert found.train_cfg == dict(
        max_iters=250, val_interval=41, val_begin=25, dynamic_intervals=[(208, 1)]
    )
    assert found.default_hooks.checkpoint == dict(
        type='CheckpointHook', interval=20, save_last=True, max_keep_ckpts=1
    )
    assert found.default_hooks.logger.interval == 20
    assert found.custom_hooks[0].begin_iter == 50
    assert found.param_scheduler is None


def test_epochs_are_shortened():
    found = shrunken(
        5,
        [
            dict(type='LinearLR', by_epoch=False, begin=0, end=500),
            dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11]),
        ],
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=-1)),
        custom_hooks=[
            dict(type='YOLOXModeSwitchHook', num_last_epochs=6),
            dict(type='PipelineSwitchHook', switch_epoch=10),
        ],
    )
    assert found.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=5, val_interval=1)
    assert found.param_scheduler[0].end == 208
    assert found.param_scheduler[1].milestones == [3, 4] and found.param_scheduler[1].end == 5
    assert found.default_hooks.checkpoint.interval == -1
    assert found.custom_hooks[0].num_last_epochs == 2
    assert found.custom_hooks[1].switch_epoch == 4


def test_a_schedule_without_a_length_is_refused():
    with pytest.raises(ToolError, match='expected max_iters or max_epochs in train_cfg'):
        shrunken(5, train_cfg=dict(type='Mine'))


def test_the_length_is_rounded_down_and_never_nothing():
    assert pace.shorter_length(600, 0.2, 0.25) == 480
    assert pace.shorter_length(7, 0.5, 0.8) == 4  # 4.375
    assert pace.shorter_length(3, 0.1, 0.9) == 1
    # All of it for the fastest, though 49 · 0.1 / 0.1 is less than 49 in float64.
    for seconds in (0.1, 0.0524, 1 / 3):
        assert all(pace.shorter_length(n, seconds, seconds) == n for n in range(1, 500))


def test_rounds_are_measured_until_two_agree():
    assert not pace.enough([[1.0, 1.1]])
    assert pace.enough([[1.0, 1.1], [1.2]])
    assert not pace.enough([[1.0], [1.3]])
    assert pace.enough([[1.0], [1.3], [1.1]])
    assert pace.enough([[1.0], [1.3], [1.7], [2.4]])
    assert pace.excess([[1.0, 1.0, 9.0], [1.7], [1.3]]) == pytest.approx(0.3)


def run_of(folder: Path, name: str, fingerprint: str) -> Run:
    logging = Logging(600, False, 10, False)
    return Run(name, 0, folder / 'config.py', folder / name, fingerprint, logging)


def test_the_report_says_how_pace_was_measured(tmp_path):
    runs = [run_of(tmp_path, name, name) for name in ('a', 'b')]
    known = dict(machine='M', date='D', rounds=dict(a=[[0.2], [0.2]], b=[[0.25], [0.35]]))
    text = pace.describe_pace(runs, dict(a=0.2, b=0.3), known, 2)
    assert 'Equal training time is that which a, the fastest, needs for 600 iterations.' in text
    assert 'a 0.2000 s, b 0.3000 s' in text
    assert 'No two of those of b agree: one took 40 % longer than another.' in text
    assert 'They ran one at a time; of the trainings below 2 did.' in text
    known['rounds'] = dict(a=[[0.2], [0.2]], b=[[0.32], [0.32]])
    text = pace.describe_pace(runs, dict(a=0.2, b=0.32), known, 1)
    assert 'so a gets 100.0 %' in text and 'one at a time' not in text and 'agree' not in text
    text = pace.describe_pace(runs, dict(a=0.2, b=60.5), known, 1)  # 1.98 iterations, so 1
    assert 'so b gets 50.4 % of it' in text
    assert pace.seconds_of(runs, known) == dict(a=0.2, b=0.32)


def test_pace_of_another_device_or_config_does_not_count(tmp_path):
    runs = [run_of(tmp_path, 'a', 'x'), run_of(tmp_path, 'b', 'y')]
    record = dict(device='cpu', machine='M', date='D', rounds=dict(x=[[1.0], [1.1]]))
    (tmp_path / 'pace.json').write_text(json.dumps(record))
    assert pace.read_pace(runs, 'cpu', tmp_path)['rounds'] == dict(x=[[1.0], [1.1]], y=[])
    assert pace.read_pace(runs, 'cuda', tmp_path)['rounds'] == dict(x=[], y=[])
    assert pace.read_pace(runs, None, tmp_path)['rounds'] == dict(x=[[1.0], [1.1]], y=[])
    assert pace.read_pace(runs, None, tmp_path / 'none')['rounds'] == dict(x=[], y=[])
    assert pace.seconds_of(runs, pace.read_pace(runs, 'cpu', tmp_path)) is None
    assert pace.seconds_of(runs[:1], pace.read_pace(runs, 'cpu', tmp_path)) == dict(
        a=pytest.approx(1.05)
    )


def test_runs_of_one_config_are_made_once(tmp_path):
    whole = [run_of(tmp_path / 'w', 'a', 'x'), run_of(tmp_path / 'w', 'b', 'y')]
    timed = [run_of(tmp_path / 't', 'a', 'x'), run_of(tmp_path / 't', 'b', 'z')]
    assert share(whole, timed, False) == (whole, [whole[0], timed[1]])
    assert share(whole, timed, True) == ([timed[0], whole[1]], timed)
    # It was begun where only equal time was asked for.
    timed[0].folder.mkdir(parents=True)
    timed[0].keep(timed[0].state())
    assert share(whole, timed, False) == ([timed[0], whole[1]], timed)
    whole[0].folder.mkdir(parents=True)
    whole[0].keep(whole[0].state())
    for prefer_timed, kept in ((False, whole[0]), (True, timed[0])):
        assert share(whole, timed, prefer_timed)[1] == [kept, timed[1]]


def test_short_trainings_never_wait_for_an_epoch_to_begin(tmp_path):
    base = own_configs() / '_base_' / 'segnet_vgg16_1xb8-200e_camvid-360x480.py'
    path = tmp_path / 'short.py'
    path.write_text(pace.short_config(base))
    cfg = Config.fromfile(path)
    assert Config.fromfile(base).train_dataloader.sampler == dict(
        type='DefaultSampler', shuffle=True
    )
    assert cfg.train_dataloader.sampler == dict(type='InfiniteSampler', shuffle=True)
    assert cfg.train_cfg == dict(type='IterBasedTrainLoop', max_iters=40, val_interval=10**9)
