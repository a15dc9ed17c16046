"""Config, checkpoint and data that differ in one thing: it is said, or it stops.

`pytest tests/test_mismatches.py -m slow --no-header -rA` runs all pairs and prints what each says.
"""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import running
import torch
from running import as_arguments
from test_segmentation_tools import CONFIG as SEGMENTOR

CONFIG = 'configs/faster_rcnn_r2n14_shapes.py'
NAMES = ('disc', 'square', 'triangle', 'star')
OTHER_ORDER = ('star', 'disc', 'square', 'triangle')

pytestmark = pytest.mark.slow


def call(tool, *args):
    run = running.call(tool, *args)
    run.said = run.stdout + run.stderr
    assert 'Traceback' not in run.said, run.said[-3000:]
    return run


def ap_of(text):
    """AP of all classes, from the last table of boxes."""
    return re.findall(r'^all +([\d.]+)', text[text.rindex('bbox     ') :], re.MULTILINE)[0]


@pytest.fixture(scope='module')
def runs(shapes, tiny_options, tmp_path_factory):
    """A trained detector and segmentor, and what is right for them."""
    root = tmp_path_factory.mktemp('mismatches')
    options = {
        **tiny_options,
        'train_cfg.max_epochs': 30,
        'train_cfg.val_interval': 30,
        'optim_wrapper.optimizer.lr': 4e-3,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'model.test_cfg.rcnn.score_thr': 0.0,
        'default_hooks.checkpoint.interval': 2,
        'randomness.seed': 7,
    }
    trained = call('train', CONFIG, '--work-dir', root / 'det', *as_arguments(options))
    assert trained.returncode == 0, trained.said[-3000:]
    config = root / 'fcn.py'
    config.write_text(SEGMENTOR.replace('DATA', str(shapes)))
    trained = call('train', config, '--work-dir', root / 'seg')
    assert trained.returncode == 0, trained.said[-3000:]
    made = SimpleNamespace(
        root=root,
        shapes=shapes,
        options=options,
        last=root / 'det' / 'epoch_30.pth',
        before=root / 'det' / 'epoch_28.pth',
        fcn=config,
        fcn_weights=root / 'seg' / 'iter_4.pth',
        results=root / 'results.json',
        truth=shapes / 'annotations' / 'instances_val.json',
    )
    right = test(made, out=made.results)
    assert right.returncode == 0, right.said[-3000:]
    made.ap = ap_of(right.stdout)
    assert float(made.ap) > 0.005
    return made


def arguments(runs, options, work_dir='w'):
    chosen = {key: value for key, value in {**runs.options, **options}.items() if value != '-'}
    return ['--work-dir', runs.root / work_dir, *as_arguments(chosen)]


def test(runs, checkpoint=None, out=None, **options):
    more = ['--out', out] if out else []
    dotted = {key.replace('__', '.'): value for key, value in options.items()}
    return call('test', CONFIG, checkpoint or runs.last, *more, *arguments(runs, dotted))


test.__test__ = False


def resume(runs, options, *more, checkpoint=None):
    work_dir = f'resumed{len(list(runs.root.glob("resumed*")))}'
    source = checkpoint or runs.before
    return call('train', CONFIG, '--resume', source, *more, *arguments(runs, options, work_dir))


def train(runs, options, *more):
    work_dir = f'trained{len(list(runs.root.glob("trained*")))}'
    short = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1}
    return call('train', CONFIG, *more, *arguments(runs, {**short, **options}, work_dir))


def infer(runs, config, checkpoint, out, options=()):
    more = as_arguments(dict(options)) if options else ()
    images = sorted((runs.shapes / 'val').glob('*.jpg'))[0]
    run = call('infer', config, checkpoint, images, '--out', out, *more)
    written = out / 'predictions.json'
    return run, json.loads(written.read_text()) if written.exists() else None


def changed(runs, change: Callable[[dict], None], source=None) -> Path:
    """A checkpoint that differs in one thing."""
    checkpoint = torch.load(source or runs.last, weights_only=False)
    change(checkpoint)
    path = runs.root / f'changed{len(list(runs.root.glob("changed*")))}.pth'
    torch.save(checkpoint, path)
    return path


def annotations(runs, change: Callable[[dict], None], split='val') -> Path:
    """An annotation file that differs in one thing."""
    content = json.loads((runs.shapes / 'annotations' / f'instances_{split}.json').read_text())
    change(content)
    path = runs.root / f'changed{len(list(runs.root.glob("changed*")))}.json'
    path.write_text(json.dumps(content))
    return path


def nan_weights(checkpoint):
    checkpoint['state_dict']['backbone.layer4.0.conv1.weight'][0, 0] = float('nan')


def no_classes(checkpoint):
    checkpoint['meta'].pop('dataset_meta')


def swap_sizes(content):
    for image in content['images']:
        image['width'], image['height'] = image['height'], image['width'] - 1


def first_images(number):
    def keep(content):
        content['images'] = content['images'][:number]
        ids = {image['id'] for image in content['images']}
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]

    return keep


def stops(run, *said):
    """One line, status 1."""
    lines = [line for line in run.stderr.splitlines() if line.startswith('error: ')]
    assert run.returncode == 1 and len(lines) == 1, run.said[-2000:]
    for pattern in said:
        assert re.search(pattern, lines[0]), lines[0]
    print('STOPS', lines[0][:300])


def says(run, *said):
    """Goes on, with a line that has all of it."""
    assert run.returncode == 0, run.said[-2000:]
    told = [line for line in run.said.splitlines() if 'Epoch(' not in line]
    lines = [line for line in told if all(re.search(pattern, line) for pattern in said)]
    assert lines, run.said[-4000:]
    print('SAYS', lines[0][:300])


# ---- resume: the config against the checkpoint's run


def test_resume_with_more_epochs(runs):
    says(resume(runs, {'train_cfg.max_epochs': 32}), 'max_epochs', '30', '32')


@pytest.mark.parametrize(
    'option,value,said',
    [
        ('optim_wrapper.optimizer.lr', 8e-3, ['lr', '0.008', '0.004']),
        ('optim_wrapper.optimizer.weight_decay', 0.1, ['weight_decay', '0.1', '0.05']),
        ('optim_wrapper.optimizer.type', 'SGD', ['optimizer', 'SGD', 'AdamW']),
        ('optim_wrapper.accumulative_counts', 2, ['accumul', '2', '1']),
        ('train_dataloader.batch_size', 8, ['batch', '8', '4']),
        ('train_dataloader.dataset.indices', 8, ['epoch', '2 iterations', '4']),
        ('param_scheduler.1.T_max', 60, ['T_max', '60', '6']),
        ('randomness.seed', 9, ['seed', '9', '7']),
        ('optim_wrapper.clip_grad.max_norm', 1.0, ['max_norm|clip_grad', '1', '5']),
    ],
)
def test_resume_with_a_changed_option(runs, option, value, said):
    run = resume(runs, {option: value})
    (stops if run.returncode else says)(run, *said)


def test_resume_in_mixed_precision(runs):
    run = resume(runs, {}, '--amp')
    (stops if run.returncode else says)(run, '[Aa]mp|AMP|mixed|precision|optim_wrapper')


def test_resume_with_another_data_file(runs):
    other = annotations(runs, lambda c: c['annotations'].reverse(), 'train')
    run = resume(runs, {'train_dataloader.dataset.ann_file': other})
    (stops if run.returncode else says)(run, 'ann_file', other.name)


def test_resume_with_classes_in_another_order(runs):
    run = resume(runs, {'train_dataloader.dataset.metainfo.classes': OTHER_ORDER,
                        'val_dataloader.dataset.metainfo.classes': OTHER_ORDER,
                        'test_dataloader.dataset.metainfo.classes': OTHER_ORDER})  # fmt: skip
    (stops if run.returncode else says)(run, 'class', 'star', 'disc')


def test_resume_of_another_model(runs):
    stops(resume(runs, {'model.roi_head.bbox_head.fc_out_channels': 48}), 'fit', 'shared_fcs')


def test_resume_of_a_finished_run(runs):
    says(resume(runs, {}, checkpoint=runs.last), 'nothing', '30')


def test_resume_of_weights_that_are_not_finite(runs):
    path = changed(runs, nan_weights, runs.before)
    stops(resume(runs, {}, checkpoint=path), 'finite|nan', 'layer4')


# ---- load_from, learning rate, keys


def test_load_from_that_matches_nothing(runs):
    def rename(checkpoint):
        state = checkpoint['state_dict']
        checkpoint['state_dict'] = {f'net.{key}': value for key, value in state.items()}

    stops(
        train(runs, {'load_from': changed(runs, rename)}), 'load_from|changed', 'none|nothing|no '
    )


def test_load_from_a_segmentor(runs):
    says(train(runs, {'load_from': runs.fcn_weights}), 'loaded', 'neck')


def test_load_from_with_another_number_of_classes(runs):
    three = annotations(runs, lambda c: None)
    options = {
        f'{split}_dataloader.dataset.metainfo.classes': NAMES[:3]
        for split in ('train', 'val', 'test')
    }
    run = train(runs, {**options, 'load_from': runs.last,
                       'model.roi_head.bbox_head.num_classes': 3})  # fmt: skip
    assert three.exists()
    says(run, 'loaded', 'fc_cls')


def test_load_from_with_classes_in_another_order(runs):
    options = {
        f'{split}_dataloader.dataset.metainfo.classes': OTHER_ORDER
        for split in ('train', 'val', 'test')
    }
    run = train(runs, {**options, 'load_from': runs.last})
    (stops if run.returncode else says)(run, 'class', 'star', 'disc')


def test_learning_rate_scaled_with_accumulation(runs):
    """Batch 4 x 2 accumulated is the 8 that the learning rate is meant for: it stays."""
    run = train(runs, {'optim_wrapper.accumulative_counts': 2, 'param_scheduler': []},
                '--auto-scale-lr')  # fmt: skip
    assert run.returncode == 0, run.said[-2000:]
    assert re.search(r'learning rate .*0\.004', run.stdout), run.stdout[:1500]
    assert re.search(r'lr: 4\.0000e-03', run.said), run.said[-2000:]


@pytest.mark.parametrize(
    'option,value,near',
    [
        ('optim_wraper.optimizer.lr', 1, 'optim_wrapper'),
        ('randomnes.seed', 9, 'randomness'),
        ('max_epoch', 1, 'max_epochs'),
        ('train_dataloader.batchsize', 2, 'batch_size'),
        ('model.backbone.frozen_stage', 1, 'frozen_stages'),
    ],
)
def test_key_that_nothing_reads(runs, option, value, near):
    stops(train(runs, {option: value}), option.split('.')[-1] + '|' + option.split('.')[0], near)


def test_neck_of_another_width(runs):
    stops(train(runs, {'model.neck.in_channels': [64, 128, 256, 512]}), 'neck.in_channels', '32')


def test_number_of_classes_against_the_head(runs):
    stops(train(runs, {'model.roi_head.bbox_head.num_classes': 5}), 'num_classes', '5', '4')


# ---- test: AP of what was run, by the right classes


def test_classes_in_another_order_than_their_file(runs):
    run = test(runs, test_dataloader__dataset__metainfo__classes=OTHER_ORDER)
    stops(run, 'metainfo.classes', 'order')


def test_classes_in_another_order_than_the_checkpoint(runs):
    def reorder(content):
        by_name = {category['name']: category for category in content['categories']}
        content['categories'] = [by_name[name] for name in OTHER_ORDER]

    file = annotations(runs, reorder)
    run = test(
        runs,
        test_dataloader__dataset__metainfo__classes=OTHER_ORDER,
        test_dataloader__dataset__ann_file=file,
        test_evaluator__ann_file=file,
    )
    says(run, 'class', 'order', 'by name')
    assert ap_of(run.stdout) == runs.ap


def test_classes_of_other_names(runs):
    names = ('cat', 'dog', 'cow', 'hen')

    def rename(content):
        for category, name in zip(content['categories'], names, strict=True):
            category['name'] = name

    file = annotations(runs, rename)
    run = test(
        runs,
        test_dataloader__dataset__metainfo__classes=names,
        test_dataloader__dataset__ann_file=file,
        test_evaluator__ann_file=file,
    )
    stops(run, 'disc', 'cat')


def test_part_of_the_images(runs):
    run = test(runs, test_dataloader__dataset__indices=5)
    says(run, '5', '12')
    file = annotations(runs, first_images(5))
    right = test(runs, test_dataloader__dataset__ann_file=file, test_evaluator__ann_file=file)
    assert ap_of(run.stdout) == ap_of(right.stdout) != runs.ap


def test_evaluator_with_more_images(runs):
    file = annotations(runs, first_images(5))
    run = test(runs, test_dataloader__dataset__ann_file=file)
    (stops if run.returncode else says)(run, '5', '12')


def test_evaluator_with_other_images(runs):
    def other_ids(content):
        for image in content['images']:
            image['id'] += 1000
        for annotation in content['annotations']:
            annotation['image_id'] += 1000

    stops(test(runs, test_evaluator__ann_file=annotations(runs, other_ids)), 'image')


@pytest.mark.parametrize('split', ['train', 'test'])
def test_sizes_that_are_not_the_images(runs, split):
    file = annotations(runs, swap_sizes, 'train' if split == 'train' else 'val')
    if split == 'train':
        run = train(runs, {'train_dataloader.dataset.ann_file': file})
    else:
        run = test(runs, test_dataloader__dataset__ann_file=file, test_evaluator__ann_file=file)
    stops(run, r'\.jpg', '256')


def test_weights_that_are_not_finite(runs):
    stops(test(runs, changed(runs, nan_weights)), 'finite|nan', 'layer4')


def test_checkpoint_without_classes(runs):
    run = test(runs, changed(runs, no_classes))
    says(run, 'class', 'checkpoint')
    assert ap_of(run.stdout) == runs.ap


def test_checkpoint_of_another_rule(runs):
    stops(test(runs, model__backbone__first_block='mmdet'), 'first_block', 'official', 'mmdet')


def test_preprocessing_that_is_not_the_runs(runs):
    run = test(runs, model__data_preprocessor__mean=[0, 0, 0])
    says(run, 'mean', '123.675')


def test_anchors_that_are_not_the_runs(runs):
    says(test(runs, model__rpn_head__anchor_generator__scales=[8]), 'scales', '4', '8')


# ---- results files


def test_results_of_a_part_of_the_images(runs):
    ids = [image['id'] for image in json.loads(runs.truth.read_text())['images']][:4]
    results = [r for r in json.loads(runs.results.read_text()) if r['image_id'] in ids]
    part = runs.root / 'part.json'
    part.write_text(json.dumps(results))
    says(call('eval_results', part, runs.truth), '8', '12')


def test_results_of_other_images(runs):
    results = copy.deepcopy(json.loads(runs.results.read_text()))
    for result in results:
        result['image_id'] += 1000
    other = runs.root / 'other.json'
    other.write_text(json.dumps(results))
    stops(call('eval_results', other, runs.truth), 'image_id')


# ---- predicting


def test_predicting_without_class_names(runs):
    options = {k: v for k, v in runs.options.items() if k.startswith('model')}
    run, found = infer(runs, CONFIG, changed(runs, no_classes), runs.root / 'i0', options)
    says(run, 'class', 'checkpoint')
    assert found['classes'] == list(NAMES)


def test_predicting_with_weights_that_are_not_finite(runs):
    options = {k: v for k, v in runs.options.items() if k.startswith('model')}
    run, found = infer(runs, CONFIG, changed(runs, nan_weights), runs.root / 'i1', options)
    stops(run, 'finite|nan', 'layer4')
    assert found is None


def test_segmentor_without_class_names(runs):
    path = changed(runs, no_classes, runs.fcn_weights)
    run, found = infer(runs, runs.fcn, path, runs.root / 'i2')
    says(run, 'class', 'checkpoint')
    assert found['classes'] == ['background', *NAMES]
    assert sum(found['images'][0]['shares'].values()) == pytest.approx(1, abs=1e-5)


# ---- segmentors


def segmentor(runs, old, new):
    path = runs.root / f'fcn{len(list(runs.root.glob("fcn*.py")))}.py'
    text = runs.fcn.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_segmentor_with_classes_in_another_order(runs):
    other = segmentor(
        runs,
        "'background', 'disc', 'square', 'triangle', 'star'",
        "'background', 'star', 'disc', 'square', 'triangle'",
    )
    run = call('test', other, runs.fcn_weights, '--work-dir', runs.root / 'w')
    (stops if run.returncode else says)(run, 'class', 'star')


def test_label_maps_of_another_size(runs):
    root = runs.root / 'resized'
    shutil.copytree(runs.shapes, root)
    file = sorted((root / 'semseg' / 'val').glob('*.png'))[3]
    labels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    file.unlink()
    cv2.imwrite(str(file), cv2.resize(labels, (128, 128), interpolation=cv2.INTER_NEAREST))
    other = segmentor(runs, str(runs.shapes), str(root))
    run = call('test', other, runs.fcn_weights, '--work-dir', runs.root / 'w')
    stops(run, file.stem, '128', '256')


def test_label_values_that_the_classes_lack(runs):
    other = segmentor(runs, "'triangle', 'star')", "'triangle')")
    run = call('train', other, '--work-dir', runs.root / 'w2')
    stops(run, 'class')
