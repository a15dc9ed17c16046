"""Runs that start from a checkpoint: with a config that has changed, or from weights alone."""

import copy
import logging
import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS

from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.report import describe_batch
from res2net_mm.engine.resuming import read_config_text
from res2net_mm.engine.runner import build_runner, prepare_config
from res2net_mm.weights import CheckpointError, describe_partial_load, read_checkpoint


@MODELS.register_module(force=True)
class LineOfResuming(BaseModel):
    def __init__(self, width=1, **kwargs):
        super().__init__(**kwargs)
        self.layer = torch.nn.Linear(2, width)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.layer(torch.stack(x)).square().mean())


@DATASETS.register_module(force=True)
class PointsOfResuming(torch.utils.data.Dataset):
    def __init__(self, size=8, shift=0.0):
        self.points = [dict(x=torch.tensor([i + shift, 1.0])) for i in range(size)]

    def __len__(self):
        return len(self.points)

    def __getitem__(self, i):
        return self.points[i]


@HOOKS.register_module(force=True)
class RatesOfResuming(Hook):
    seen: list[tuple[int, float, float]] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        group = runner.optim_wrapper.param_groups[0]
        self.seen.append((runner.iter, group['lr'], group['weight_decay']))


@DATA_SAMPLERS.register_module(force=True)
class EvenFirstOfResuming(torch.utils.data.BatchSampler):
    """Pairs of even indices, then pairs of odd ones."""

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, drop_last=False)

    def __iter__(self):
        drawn = list(self.sampler)
        ordered = [i for i in drawn if i % 2 == 0] + [i for i in drawn if i % 2]
        yield from (ordered[k : k + 2] for k in range(0, len(ordered), 2))


@DATA_SAMPLERS.register_module(force=True)
class MiscountedOfResuming(torch.utils.data.SequentialSampler):
    """Yields ``real`` indices, as samplers that repeat or drop images do, and says 8."""

    def __init__(self, dataset, real, seed=None):
        self.real = real
        super().__init__(dataset)

    def __iter__(self):
        return (i % 8 for i in range(self.real))


SCHEDULES = {
    'cosine': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
        dict(type='CosineAnnealingLR', T_max=2, by_epoch=True, convert_to_iter_based=True),
    ],
    'steps': [dict(type='MultiStepLR', milestones=[1, 3], by_epoch=True, begin=0, end=2)],
    'poly': [dict(type='PolyLR', eta_min=1e-4, power=0.9, by_epoch=False, begin=0, end=8)],
}


def config(schedule='cosine', epochs=2, **more):
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=dict(type='LineOfResuming'),
            train_dataloader=dict(
                batch_size=2,
                dataset=dict(type='PointsOfResuming'),
                sampler=dict(type='DefaultSampler', shuffle=True),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.02, weight_decay=0.1)),
            param_scheduler=copy.deepcopy(SCHEDULES[schedule]),
            custom_hooks=[dict(type='RatesOfResuming')],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            randomness=dict(seed=5),
        )
    )
    cfg.merge_from_dict(more)
    return cfg


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains; returns rates by iteration, checkpoints by epoch and what was said."""
    count = iter(range(99))

    def train(cfg, resume=None, **kwargs):
        said = []
        monkeypatch.setattr(
            logging.Logger, 'warning', lambda self, text, *args, **kwargs: said.append(str(text))
        )
        monkeypatch.setattr(logging.Logger, 'log', lambda self, level, text: said.append(text))
        work_dir = tmp_path / str(next(count))
        cfg = prepare_config(cfg, work_dir=str(work_dir), resume=resume and str(resume), **kwargs)
        cfg.experiment_name = work_dir.name + tmp_path.name
        RatesOfResuming.seen = []
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            build_runner(cfg).train()
        return RatesOfResuming.seen, work_dir, '\n'.join(said)

    return train


def same_state(one, other):
    one, other = (read_checkpoint(path) for path in (one, other))
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert str(one[key]) == str(other[key]), key
    assert one['meta']['iter'] == other['meta']['iter']


def test_the_same_config_goes_on_without_a_word(run):
    whole, folder, _ = run(config())
    rest, resumed, said = run(config(), folder / 'epoch_1.pth')
    assert rest == whole[4:] and len(rest) == 4
    same_state(folder / 'epoch_2.pth', resumed / 'epoch_2.pth')
    assert 'differs' not in said and 'learning rate' not in said
    meta = read_checkpoint(folder / 'epoch_2.pth')['meta']['res2net_mm_run']
    assert meta == dict(epoch_length=4, world_size=1, within=0)


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_a_longer_run_has_the_schedule_of_one_that_was_longer_from_the_start(run, schedule):
    longer = config(schedule, 4)
    for scheduler in longer.param_scheduler:
        scheduler.update({key: 4 for key in ('end', 'T_max') if scheduler.get(key) == 2})
    whole, reference, _ = run(longer)
    _, folder, _ = run(config(schedule))
    # given as a user does: the length alone
    rest, resumed, said = run(config(schedule, 4), folder / 'epoch_2.pth')
    assert rest == whole[8:] and len(rest) == 8
    assert 'train_cfg.max_epochs: 2 -> 4' in said
    assert ('T_max: 2 -> 4' in said) is (schedule == 'cosine')
    ends = [read_checkpoint(f / 'epoch_4.pth')['param_schedulers'] for f in (reference, resumed)]
    assert str(ends[0]) == str(ends[1])


def by_iterations(iterations, **more):
    cfg = config('poly', **more)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=99)
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=4)
    return cfg


def test_a_longer_run_by_iterations(run):
    longer = by_iterations(12)
    longer.param_scheduler[0].end = 12
    whole, _, _ = run(longer)
    _, folder, _ = run(by_iterations(8))
    rest, _, said = run(by_iterations(12), folder / 'iter_8.pth')
    assert rest == whole[8:] and len(rest) == 4 and 'param_scheduler.0.end: 8 -> 12' in said
    # a batch of another size leaves the place in the run and the schedule as they are
    whole, _, _ = run(by_iterations(8))
    more = by_iterations(8, **{'train_dataloader.batch_size': 3, 'train_dataloader.num_workers': 0})
    rest, _, said = run(more, folder / 'iter_4.pth')
    assert rest == whole[4:] and 'batch_size: 2 -> 3' in said and 'num_workers' not in said
    rest, _, said = run(by_iterations(8), folder / 'iter_8.pth')
    assert rest == [] and 'nothing left to train: 8 of 8 iters' in said


def test_another_learning_rate_and_decay_are_taken(run):
    changes = {'optim_wrapper.optimizer.lr': 0.4, 'optim_wrapper.optimizer.weight_decay': 0.0}
    whole, _, _ = run(config(**changes))
    before, folder, _ = run(config())
    rest, _, said = run(config(**changes), folder / 'epoch_1.pth')
    assert rest == whole[4:] and rest[0][1:] == (pytest.approx(20 * before[4][1]), 0.0)
    assert 'optim_wrapper.optimizer.lr: 0.02 -> 0.4' in said and 'weight_decay: 0.1 -> 0.0' in said
    assert f'learning rate {rest[0][1]:g}' in said


@pytest.mark.parametrize('change', [('batch_size', 1), ('dataset.size', 16)])
def test_epochs_of_another_length(run, change):
    """Was refused as 'within an epoch', or went on at a wrong place with a negative time left."""
    changes = {f'train_dataloader.{change[0]}': change[1]}
    whole, _, _ = run(config(**changes))
    _, folder, _ = run(config())
    rest, resumed, said = run(config(**changes), folder / 'epoch_1.pth')
    assert rest == whole[8:] and [step for step, *_ in rest] == list(range(8, 16))
    assert f'train_dataloader.{change[0]}' in said
    assert 'an epoch has 8 iterations and had 4' in said and 'iteration 9 of 16' in said
    # files of other programs do not say how long their epochs were
    old = read_checkpoint(folder / 'epoch_1.pth')
    del old['meta']['res2net_mm_run']
    torch.save(old, folder / 'old.pth')
    assert run(config(**changes), folder / 'old.pth')[0] == rest


def test_data_of_another_length_without_a_change_of_the_config(run):
    _, folder, _ = run(config())
    old = read_checkpoint(folder / 'epoch_1.pth')
    old['meta']['res2net_mm_run']['epoch_length'] = 7
    old['meta']['iter'] = 7
    torch.save(old, folder / 'old.pth')
    rest, _, said = run(config(), folder / 'old.pth')
    assert [step for step, *_ in rest] == [4, 5, 6, 7] and 'has 4 iterations and had 7' in said


def test_a_checkpoint_from_within_an_epoch_goes_on_there(run):
    inside = dict(type='CheckpointHook', interval=1, by_epoch=False)
    whole, folder, _ = run(config(**{'default_hooks.checkpoint': inside}))
    for done in range(1, 8):  # 4: before its epoch was counted
        rest, resumed, said = run(config(), folder / f'iter_{done}.pth')
        assert rest == whole[done:] and 'differs' not in said
        same_state(folder / 'iter_8.pth', resumed / 'epoch_2.pth')
        # with another learning rate, schedules are stepped anew to the same place
        changes = {'optim_wrapper.optimizer.lr': 0.4}
        rest, _, _ = run(config(**changes), folder / f'iter_{done}.pth')
        assert [row[:2] for row in rest] == [
            (step, pytest.approx(20 * lr)) for step, lr, _ in whole[done:]
        ]
    with pytest.raises(ToolError, match='within an epoch.* 4 iterations each, and now .* has 8'):
        run(config(**{'train_dataloader.batch_size': 1}), folder / 'iter_2.pth')


def test_batches_by_shape_go_on_within_an_epoch(run):
    """Which samples are in the first batches does not follow from their number."""
    changes = {'train_dataloader.batch_sampler': dict(type='EvenFirstOfResuming')}
    inside = {'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1, by_epoch=False)}
    whole, folder, _ = run(config(**changes, **inside))
    rest, resumed, _ = run(config(**changes), folder / 'iter_3.pth')
    assert rest == whole[3:] and len(rest) == 5
    same_state(folder / 'iter_8.pth', resumed / 'epoch_2.pth')


@pytest.mark.parametrize('real', [12, 6, 5])
def test_samplers_that_miscount(run, real):
    changes = {'train_dataloader.sampler': dict(type='MiscountedOfResuming', real=real)}
    changes['train_dataloader.sampler']['_delete_'] = True
    changes['param_scheduler'] = []
    inside = {'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1, by_epoch=False)}
    steps = -(-real // 2)
    whole, folder, _ = run(config(**changes, **inside, epochs=3))
    assert len(whole) == 3 * steps
    _, folder_of_epochs, _ = run(config(**changes, epochs=3))
    for file, done in (('epoch_1.pth', steps), ('epoch_2.pth', 2 * steps)):
        rest, resumed, said = run(config(**changes, epochs=3), folder_of_epochs / file)
        assert [step for step, *_ in rest] == [step for step, *_ in whole[done:]], said
        same_state(folder_of_epochs / 'epoch_3.pth', resumed / 'epoch_3.pth')
    for done in (1, steps, steps + 2):
        rest, resumed, _ = run(config(**changes, epochs=3), folder / f'iter_{done}.pth')
        assert len(rest) == 3 * steps - done
        same_state(folder_of_epochs / 'epoch_3.pth', resumed / 'epoch_3.pth')


def test_steps_of_the_rate_after_epochs_of_fewer_batches(run):
    changes = {'train_dataloader.sampler': dict(type='MiscountedOfResuming', real=6)}
    changes['train_dataloader.sampler']['_delete_'] = True
    _, folder, _ = run(config('steps', **changes, epochs=4))
    other = config('steps', **changes, epochs=4)
    other.param_scheduler[0].gamma = 0.5
    whole, *_ = run(other.copy())
    rest, *_ = run(other.copy(), folder / 'epoch_2.pth')
    assert [rate for _, rate, _ in rest] == pytest.approx([rate for _, rate, _ in whole[6:]])


def test_the_seed_stays_and_a_finished_run_is_finished(run):
    _, folder, _ = run(config())
    rest, _, said = run(config(**{'randomness.seed': 6}), folder / 'epoch_2.pth')
    assert rest == [] and 'nothing left to train: 2 of 2 epochs' in said
    assert 'randomness.seed=6 is ignored: the seed stays 5' in said
    _, _, said = run(config(epochs=1), folder / 'epoch_2.pth')
    assert 'nothing left to train: 2 of 1 epochs' in said


def test_averages_are_not_trained_as_weights(run):
    hooks = [dict(type='RatesOfResuming'), dict(type='EMAHook', momentum=0.5)]
    cfg = config(custom_hooks=hooks)
    whole, folder, _ = run(cfg)
    rest, resumed, _ = run(cfg, folder / 'epoch_1.pth')
    assert rest == whole[4:]
    same_state(folder / 'epoch_2.pth', resumed / 'epoch_2.pth')
    with pytest.raises(ToolError, match='EMAHook.*load_from'):
        run(config(), folder / 'epoch_1.pth')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'optim_wrapper.optimizer.type': 'SGD'}, 'optimizer.type is SGD.*Adam.*load_from'),
        (
            {'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=9)},
            'trained by epochs and the config trains by iters.*load_from',
        ),
        ({'optim_wrapper.paramwise_cfg': dict(bias_lr_mult=2.0)}, '2 parameters in 1 groups'),
        (
            {'param_scheduler': [dict(type='ReduceOnPlateauLR', monitor='loss')]},
            'depends on results.*load_from',
        ),
    ],
)
def test_what_cannot_go_on_is_refused(run, change, words):
    _, folder, _ = run(config())
    cfg = config()
    cfg.merge_from_dict(change)
    with pytest.raises(ToolError, match=words):
        run(cfg, folder / 'epoch_1.pth')


def test_another_model_is_refused_by_name(run):
    _, folder, _ = run(config())
    with pytest.raises(CheckpointError, match='epoch_1.pth does not fit the model.*layer.weight'):
        run(config(**{'model.width': 3}), folder / 'epoch_1.pth')


def test_files_without_training_in_them(run):
    _, folder, _ = run(config())
    old = read_checkpoint(folder / 'epoch_1.pth')
    old.pop('optimizer')
    torch.save(old, folder / 'published.pth')
    with pytest.raises(ToolError, match='no state of the optimizer.*load_from'):
        run(config(), folder / 'published.pth')
    torch.save(dict(state_dict=old['state_dict']), folder / 'weights.pth')
    with pytest.raises(ToolError, match='weights.pth holds weights and no training'):
        run(config(), folder / 'weights.pth')


@pytest.mark.parametrize('several_groups', [False, True])
def test_accumulated_batches_scale_the_learning_rate(run, several_groups):
    """0.02 is meant for 4 images; a step has 2 x 3."""
    cfg = config('steps', **{'auto_scale_lr': dict(base_batch_size=4)})
    cfg.optim_wrapper.accumulative_counts = 3
    if several_groups:
        cfg.optim_wrapper.paramwise_cfg = dict(bias_lr_mult=2.0)
    rates, folder, _ = run(cfg, auto_scale_lr=True)
    assert rates[0][1] == pytest.approx(0.03)
    said = describe_batch(prepare_config(cfg, auto_scale_lr=True))
    assert 'batch: 6 images' in said and said.endswith('= 0.03')
    state = read_checkpoint(folder / 'epoch_1.pth')['optimizer']
    if several_groups:
        assert [g['initial_lr'] for g in state['param_groups']] == pytest.approx([0.03, 0.06])
        assert state['base_param_settings']['initial_lr'] == pytest.approx(0.03)
    rest, _, said = run(cfg, folder / 'epoch_1.pth')  # unscaled now
    assert 'learning rate' in said and rest[0][1] == pytest.approx(rates[4][1] / 1.5)


def test_weights_that_fit_in_part_or_not_at_all(run, tmp_path):
    cfg = config(**{'load_from': str(tmp_path / 'weights.pth')})
    weights = {'layer.weight': torch.ones(1, 2), 'layer.bias': torch.ones(1)}
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    assert 'loaded' not in run(cfg)[2]
    other_head = dict(weights, **{'layer.bias': torch.ones(3), 'mask.weight': torch.ones(1)})
    torch.save(other_head, tmp_path / 'weights.pth')
    said = run(cfg)[2]
    assert "1 of the model's 2 weights loaded" in said
    assert 'another shape there (layer.bias)' in said and '1 left over (mask.weight)' in said
    torch.save({'conv1.weight': torch.ones(1, 2)}, tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match='none of its 1 weights fits.*conv1.*layer.weight'):
        run(cfg)


def test_weights_of_a_backbone_have_their_own_place():
    model = torch.nn.ModuleDict(dict(backbone=torch.nn.Linear(2, 1)))
    with pytest.raises(CheckpointError, match='set model.backbone.init_cfg=.*x.pth'):
        describe_partial_load(model, torch.nn.Linear(2, 1).state_dict(), 'x.pth')


def test_texts_of_configs_are_read_and_never_run(tmp_path):
    cfg = config(custom=dict(a=[1, (2.5, -3)], b={'x.y': None}, c=float('inf'), d='é', e=-0.5))
    values = read_config_text(cfg.pretty_text)
    assert values['custom'] == dict(
        a=[1, [2.5, -3]], b={'x.y': None}, c=float('inf'), d='é', e=-0.5
    )
    assert values['model'] == cfg.model and values['train_cfg'] == cfg.train_cfg
    touch = f"a = 1\n__import__('pathlib').Path({str(tmp_path / 'x')!r}).touch()"
    for text in (touch, 'a = open("x")', 'a = dict(b=print)', 'a = (', '-' * 10**5, None, 7):
        assert read_config_text(text) == {}
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_the_same_longer_run_is_resumed_again(run, schedule):
    _, folder, _ = run(config(schedule))
    once, first, _ = run(config(schedule, 4), folder / 'epoch_2.pth')
    again, _, _ = run(config(schedule, 4), first / 'epoch_3.pth')
    assert again == once[4:]


def test_epochs_of_another_length_that_a_file_does_not_explain(run):
    _, folder, _ = run(config())
    old = read_checkpoint(folder / 'epoch_1.pth')
    old['meta']['iter'] = 1
    del old['meta']['res2net_mm_run']
    torch.save(old, folder / 'old.pth')
    with pytest.raises(ToolError, match='epochs of 1 iterations.*load_from'):
        run(config(), folder / 'old.pth')
