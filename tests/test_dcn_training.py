"""Detectors with Res2NetDCN take training steps, and are the same when they are built anew."""

import copy
import textwrap
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import set_random_seed
from references import randomise, relative_error

import res2net_mm
from res2net_mm.data.check.inspection import check_data
from res2net_mm.engine.config import load_config, walk_dicts
from res2net_mm.engine.hooks import CPUAmpOptimWrapper, Float32BoxHook
from res2net_mm.ops import DeformConv2d
from res2net_mm.weights import read_checkpoint

SMALL = 'faster_rcnn_r2n14_dcn_shapes.py'
SHAPES = ('disc', 'square', 'triangle', 'star')


@contextmanager
def everything_in(dtype):
    """Models, and the images that they are given, in another type."""

    def preprocess(self, data, training=False):
        made = in_float32(self, data, training)
        return made | {'inputs': made['inputs'].to(dtype)}

    in_float32, before = DetDataPreprocessor.forward, torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetDataPreprocessor, 'forward', preprocess)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@pytest.fixture(scope='module')
def folder(request, shapes):
    """A data set in COCO's format: synthetic, or real where a test asks for it."""
    if getattr(request, 'param', 'shapes') == 'shapes':
        return shapes
    return request.getfixturevalue('real_data') / 'coco_ccby'


@pytest.fixture(scope='module')
def plain_weights(tmp_path_factory):
    """Weights of a plain Res2Net-50, as pretrained ones are published."""
    path = tmp_path_factory.mktemp('weights') / 'res2net50.pth'
    torch.save(randomise(res2net_mm.Res2Net(depth=50)).state_dict(), path)
    return path


def read_config(name, folder, size):
    """The config on images of ``size`` px of another set, as train.py accepts it."""
    cfg = load_config(name)
    dataset = cfg.train_dataloader.dataset
    dataset.update(
        data_root=f'{folder}/',
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
    )
    synthetic = folder.name == 'shapes'
    dataset.metainfo = dict(classes=SHAPES) if synthetic else {}
    for part in walk_dicts(cfg.model):
        if 'num_classes' in part:
            part.num_classes = len(SHAPES) if synthetic else 80
    for step in dataset.pipeline:
        if step.type == 'RandomResize':
            step.scale = [(size, size // 2), (size, size)]
        elif step.type == 'Resize':
            step.scale = (size, size)
    check_data(cfg, splits=('train',))
    init_default_scope(cfg.default_scope)
    return cfg


def two_images(cfg):
    """What the config's own pipeline makes of the first two images."""
    set_random_seed(0)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return pseudo_collate([dataset[0], dataset[1]])


def take_step(cfg, batch, dtype=torch.float32, **backbone):
    """One step of a new model by the config's optimizer, with what it left."""
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.update(backbone)
    set_random_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    Float32BoxHook().before_run(SimpleNamespace(model=model))
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    kind = CPUAmpOptimWrapper if dtype == torch.bfloat16 else OptimWrapper
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type=kind))
    wrapper.zero_grad = lambda **kwargs: None  # gradients stay to be looked at
    levels = []
    model.backbone.register_forward_hook(lambda module, args, out: levels.extend(out))
    losses = model.train().train_step(copy.deepcopy(batch), wrapper)
    assert {level.dtype for level in levels} == {dtype}
    trained = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
    return SimpleNamespace(
        losses=losses,
        levels=[level.detach() for level in levels],
        backbone=model.backbone,
        before=before,
        after=model.backbone.state_dict(),
        grads={name: p.grad for name, p in trained.items()},
    )


def check_step(step):
    """Every trained weight has a finite gradient and moves; offsets and masks are learnt."""
    assert all(value.isfinite().all() for value in step.losses.values())
    for name, grad in step.grads.items():
        assert grad is not None and grad.isfinite().all() and grad.any(), name
        assert not step.after[name].equal(step.before[name]), name
    layers = [m for m in step.backbone.modules() if isinstance(m, DeformConv2d)]
    assert len(layers) == sum(3 * len(getattr(step.backbone, f'layer{i}')) for i in (2, 3, 4))
    for layer in layers:
        grad = layer.conv_offset.weight.grad
        offset, mask = grad[:18], grad[18:]
        assert offset.any() and (mask.any() or layer.numbers_per_tap == 2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_training_step(kind, dtype, folder, monkeypatch):
    cfg = read_config(SMALL, folder, 128)
    cfg.model.backbone.dcn.type = kind
    batch = two_images(cfg)
    step, recomputed = (take_step(cfg, batch, dtype, with_cp=with_cp) for with_cp in (False, True))
    check_step(step)
    for name in ('losses', 'grads', 'after'):
        values, same = getattr(step, name), getattr(recomputed, name)
        assert all(values[key].equal(same[key]) for key in values.keys() | same.keys()), name

    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', 'torchvision')
    compiled = take_step(cfg, batch)
    pairs = zip(step.levels, compiled.levels, strict=True)
    errors = [relative_error(level.float(), exact) for level, exact in pairs]
    if dtype == torch.bfloat16:  # C2, which is not deformed, shows the type's own error
        assert 0.005 < errors[0] < 0.02 and max(errors) < 4 * errors[0]
    else:
        assert errors[0] == 0 and max(errors) < 2e-6
        for name, loss in step.losses.items():
            assert loss.item() == pytest.approx(compiled.losses[name].item(), rel=1e-6)


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_gradients_of_a_training_step(kind, folder, monkeypatch):
    """In float64: where rounding decides the side of a ReLU, a gradient jumps."""
    cfg = read_config(SMALL, folder, 128)
    cfg.model.backbone.dcn.type = kind
    batch = two_images(cfg)
    with everything_in(torch.float64):
        grads = take_step(cfg, batch, torch.float64).grads
        monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', 'torchvision')
        compiled = take_step(cfg, batch, torch.float64).grads
    assert {grad.dtype for grad in grads.values()} == {torch.float64}
    for name, grad in grads.items():
        assert relative_error(grad, compiled[name]) < 1e-11, name


@pytest.mark.parametrize(
    'name, folder',
    [
        ('faster_rcnn_r2n50_dcn', 'shapes'),
        ('mask_rcnn_r2n50_dcn', 'coco_ccby'),
        ('vfnet_r2n101_dcn', 'coco_ccby'),
    ],
    indirect=['folder'],
)
def test_step_from_weights_of_the_plain_network(name, folder, plain_weights):
    """COCO configs at depth 50: pretrained, one stage frozen, batch norm in evaluation mode."""
    cfg = read_config(f'{name}.py', folder, 96)
    cfg.model.backbone.init_cfg.checkpoint = str(plain_weights)
    step = take_step(cfg, two_images(cfg), depth=50)
    check_step(step)
    pretrained = read_checkpoint(plain_weights)
    for key, value in step.before.items():
        assert value.equal(pretrained.get(key, torch.zeros_like(value))), key
        trained = key.startswith(('layer2', 'layer3', 'layer4')) and '.running_' not in key
        assert (key in step.grads) == (trained and 'num_batches' not in key)
        assert key in step.grads or value.equal(step.after[key]), key


def test_dense_head_in_mixed_precision(folder):
    """mmdet's VFNet writes float32 values into what it predicted."""
    cfg = read_config('vfnet_r2n101_dcn.py', folder, 96)
    cfg.model.backbone.init_cfg = None
    step = take_step(cfg, two_images(cfg), torch.bfloat16, depth=50)
    assert all(value.isfinite().all() for value in step.losses.values())
    assert all(
        grad.isfinite().all() and grad.dtype == torch.float32 for grad in step.grads.values()
    )


DETECT = """
    import ast, sys
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS
    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.infer import ConfiguredModel
    from res2net_mm.engine.runner import build_runner, prepare_config

    config, options, work_dir, out = sys.argv[1:]
    cfg = prepare_config(load_config(config, ast.literal_eval(options)), work_dir=work_dir)
    if out == 'trained':
        runner = build_runner(cfg)
        runner.train()
        model = runner.model.eval()
    else:
        model = ConfiguredModel(cfg, f'{work_dir}/epoch_1.pth', 'cpu').model
        model.to(memory_format=torch.channels_last)  # as the Runner does: equal to the last bit
    batch = pseudo_collate([DATASETS.build(cfg.val_dataloader.dataset)[0]])
    with torch.no_grad():
        found = model.test_step(batch)[0].pred_instances
        levels = model.backbone(model.data_preprocessor(batch)['inputs'])
    found = dict(boxes=found.bboxes, scores=found.scores, labels=found.labels)
    torch.save(found | {f'level {i}': level for i, level in enumerate(levels)}, f'{work_dir}/{out}')
"""


@pytest.mark.slow
def test_detector_in_a_fresh_process_is_the_trained_one(stack, python, tiny_options, tmp_path):
    options = {**tiny_options, 'train_cfg.max_epochs': 1, 'model.test_cfg.rcnn.score_thr': 0.0}
    for out in ('trained', 'anew'):
        arguments = (SMALL, repr(options), tmp_path, out)
        run = python('-c', textwrap.dedent(DETECT), *arguments, env=stack)
        assert run.returncode == 0, run.stderr[-3000:]
    trained, anew = (torch.load(tmp_path / out) for out in ('trained', 'anew'))
    assert len(trained['boxes']) > 0 and len(trained) == 3 + 4
    assert {key for key in trained if not trained[key].equal(anew[key])} == set()
    weights = read_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']
    assert all(value.any() for key, value in weights.items() if key.endswith('offset.weight'))
