"""The tools as a user calls them: results, and one line where something is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from running import ENV, REPO, as_arguments, call

from res2net_mm.ops.memory import can_keep_memory

CONFIG = 'configs/faster_rcnn_r2n14_shapes.py'


def error_of(run):
    """The one line that a mistake ends with."""
    assert run.returncode == 1, run.stderr[-2000:]
    assert 'Traceback' not in run.stderr, run.stderr[-2000:]
    lines = [line for line in run.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, run.stderr[-2000:]
    return lines[0]


@pytest.fixture(scope='module')
def trained(tiny_arguments, tmp_path_factory):
    """Work dir of a short run."""
    work_dir = tmp_path_factory.mktemp('runs') / 'tiny'
    run = call('train', CONFIG, '--work-dir', work_dir, *tiny_arguments, 'train_cfg.max_epochs=1')
    assert run.returncode == 0, run.stderr[-3000:]
    (work_dir / 'stdout.txt').write_text(run.stdout)
    return work_dir


def test_training_says_what_it_does(trained):
    text = (trained / 'stdout.txt').read_text()
    assert 'device: CPU (1 threads' in text
    assert 'batch: 4 images a step (4 x 1 processes); learning rate' in text
    assert 'it is meant for 8 images' in text
    assert 'train: 16 images' in text and 'disc' in text
    assert 'operators: torchvision' in text and f'everything goes to {trained}' in text
    assert 'eta: ' in text
    assert ('memory: ' in text) is can_keep_memory()
    assert 'safeguards in the config:\n  train_dataloader: ' in text
    assert 'mmengine takes only weights and values from' in text
    assert (trained / 'epoch_1.pth').exists() and not list(trained.glob('.*partial*'))


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_mixed_precision_on_a_cpu(trained, tiny_arguments, tmp_path):
    arguments = ['--amp', *tiny_arguments, 'train_cfg.max_epochs=1']
    run = call('train', CONFIG, '--work-dir', tmp_path, *arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    mixed, single = (
        torch.load(folder / 'epoch_1.pth', weights_only=False)['state_dict']
        for folder in (tmp_path, trained)
    )
    weights = [key for key in single if key.endswith('conv1.weight')]
    assert weights and all(mixed[key].dtype == torch.float32 for key in weights)
    errors = [(mixed[key] - single[key]).norm() / single[key].norm() for key in weights]
    assert 0 < min(errors) and max(errors) < 1e-2


def test_measuring(trained, tiny_arguments, tmp_path):
    out = tmp_path / 'new' / 'results.json'
    arguments = (CONFIG, trained / 'epoch_1.pth', '--work-dir', tmp_path / 'w', '--out', out)
    # an untrained detector is sure of nothing: keep what it says all the same
    run = call(
        'test',
        *arguments,
        '--show-dir',
        tmp_path / 'shown',
        *tiny_arguments,
        'model.test_cfg.rcnn.score_thr=0.0',
    )
    assert run.returncode == 0, run.stderr[-3000:]
    table = run.stdout[run.stdout.rindex('bbox   ') :].splitlines()
    assert table[0].split() == ['bbox', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    assert [line.split()[0] for line in table[1:6]] == ['all', 'disc', 'square', 'triangle', 'star']
    results = json.loads(out.read_text())
    assert set(results[0]) >= {'image_id', 'bbox', 'score', 'category_id'}
    assert {r['category_id'] for r in results} <= {1, 2, 3, 4}
    assert [f.name for f in out.parent.iterdir()] == ['results.json']
    assert (
        len(list((tmp_path / 'shown').rglob('*.jpg')))
        + len(list((tmp_path / 'shown').rglob('*.png')))
        > 0
    )


@pytest.mark.slow
def test_averaged_weights_and_batches_by_shape(tiny_arguments, tmp_path):
    """EMAHook reads checkpoints in its own way; AspectRatioBatchSampler asks the data set."""
    config = tmp_path / 'ema.py'
    config.write_text(
        f"_base_ = '{REPO / CONFIG}'\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.5)]\n"
        "train_dataloader = dict(batch_sampler=dict(type='AspectRatioBatchSampler'))\n"
    )
    arguments = [*tiny_arguments, 'train_cfg.max_epochs=1']
    run = call('train', config, '--work-dir', tmp_path / 'w', '--auto-scale-lr', *arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    saved = torch.load(tmp_path / 'w' / 'epoch_1.pth', weights_only=False)
    key = 'backbone.layer4.0.conv1.weight'
    assert not saved['state_dict'][key].equal(saved['ema_state_dict'][f'module.{key}'])
    run = call('test', config, tmp_path / 'w' / 'epoch_1.pth', '--work-dir', tmp_path, *arguments)
    assert run.returncode == 0, run.stderr[-3000:]


def test_predicting(trained, tiny_arguments, shapes, tmp_path):
    folder = tmp_path / 'photos'
    (folder / 'deep').mkdir(parents=True)
    images = sorted((shapes / 'val').glob('*.jpg'))
    shutil.copy(images[0], folder / 'one.jpg')
    grey = cv2.imread(str(images[1]), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / 'deep' / 'grey.png'), grey)
    cv2.imwrite(str(folder / 'rgba.png'), np.full((50, 70, 4), 128, np.uint8))
    (folder / 'cut.jpg').write_bytes(images[2].read_bytes()[:3000])
    (folder / 'notes.txt').write_text('not an image')
    out = tmp_path / 'out'
    arguments = [*tiny_arguments, 'model.test_cfg.rcnn.score_thr=0.0']
    run = call(
        'infer', CONFIG, trained / 'epoch_1.pth', folder, '--out', out, '--threshold', 0, *arguments
    )
    assert 'cut.jpg' in error_of(run), 'the others are done all the same'
    predicted = json.loads((out / 'predictions.json').read_text())
    assert predicted['classes'] == ['disc', 'square', 'triangle', 'star']
    files = {Path(record['file']).name: record for record in predicted['images']}
    assert set(files) == {'one.jpg', 'grey.png', 'rgba.png'}
    assert (files['rgba.png']['width'], files['rgba.png']['height']) == (70, 50)
    instance = files['one.jpg']['instances'][0]
    assert set(instance) == {'label', 'name', 'score', 'bbox'}
    assert instance['name'] == predicted['classes'][instance['label']]
    drawn = {str(f.relative_to(out)) for f in out.rglob('*.jpg')}
    assert drawn == {'one.jpg', 'rgba.jpg', 'deep/grey.jpg'}
    assert not [f for f in out.rglob('.*')]


def test_wrong_paths(tmp_path, trained, shapes, tiny_arguments):
    assert 'nothing.pth does not exist' in error_of(
        call('test', CONFIG, tmp_path / 'nothing.pth', '--work-dir', tmp_path, *tiny_arguments)
    )
    assert 'nothing does not exist' in error_of(
        call('infer', CONFIG, trained / 'epoch_1.pth', tmp_path / 'nothing', '--out', tmp_path)
    )
    front_door = ('configs/faster_rcnn_r2n50.py', '--work-dir', tmp_path / 'w')
    line = error_of(call('train', *front_door, '--from-scratch'))
    assert 'instances_train2017.json' in line and 'train_dataloader' in line
    assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_weights_that_cannot_be_downloaded(tmp_path):
    front_door = ('configs/faster_rcnn_r2n50.py', '--work-dir', tmp_path / 'w')
    unreachable = dict(ENV, https_proxy='http://127.0.0.1:9', RES2NET_MM_CACHE=str(tmp_path / 'c'))
    line = error_of(call('train', *front_door, env=unreachable))
    assert 'RES2NET_MM_MIRROR' in line and '--from-scratch' in line
    assert not (tmp_path / 'w').exists()


def test_checkpoint_of_another_model_is_refused(trained, shapes, tiny_arguments, tmp_path):
    other = [a for a in tiny_arguments if 'fc_out_channels' not in a]
    line = error_of(
        call('infer', CONFIG, trained / 'epoch_1.pth', shapes / 'val', '--out', tmp_path, *other)
    )
    assert 'does not fit the model of the config' in line and 'shared_fcs' in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('workers', [0, 1])
def test_cut_image_in_training_is_named(shapes, tiny_arguments, tmp_path, workers):
    broken = tmp_path / 'set'
    shutil.copytree(shapes, broken)
    image = sorted((broken / 'train').glob('*.jpg'))[3]
    content = image.read_bytes()
    image.unlink()  # it may be a hard link
    image.write_bytes(content[: len(content) // 2])
    arguments = [a.replace(str(shapes), str(broken)) for a in tiny_arguments]
    persistent = f'train_dataloader.persistent_workers={bool(workers)}'
    arguments += [f'train_dataloader.num_workers={workers}', persistent]
    run = call('train', CONFIG, '--work-dir', tmp_path / 'w', *arguments)
    assert image.name in error_of(run)


def test_classes_that_do_not_match(shapes, tiny_arguments, tmp_path):
    names = "train_dataloader.dataset.metainfo.classes=('disc','sqare','triangle','star')"
    line = error_of(call('train', CONFIG, '--work-dir', tmp_path / 'w', *tiny_arguments, names))
    assert 'sqare' in line and 'square' in line


def test_annotation_file_without_a_usable_box(shapes, tiny_arguments, tmp_path):
    annotations = json.loads((shapes / 'annotations' / 'instances_train.json').read_text())
    for annotation in annotations['annotations']:
        annotation['bbox'][2] = 0
    empty = tmp_path / 'empty.json'
    empty.write_text(json.dumps(annotations))
    option = f'train_dataloader.dataset.ann_file={empty}'
    line = error_of(call('train', CONFIG, '--work-dir', tmp_path / 'w', *tiny_arguments, option))
    assert str(empty) in line


@pytest.mark.slow
@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_full_disk(tiny_options, shapes, tmp_path):
    """A checkpoint that cannot be written leaves nothing, and says so in one line."""
    code = f"""
import sys, torch
from res2net_mm.engine.errors import run_tool
import mmengine.runner.runner as runner_module
def full(checkpoint, filename, **kwargs):
    open(filename, 'wb').write(b'half')
    torch.save(checkpoint, open('/dev/full', 'wb', buffering=0))
runner_module.save_checkpoint = full
sys.argv = ['train.py'] + {['configs/faster_rcnn_r2n14_shapes.py']!r} + sys.argv[1:]
sys.path.insert(0, 'tools')
import train
run_tool(train.main)
"""
    arguments = as_arguments(tiny_options)
    run = subprocess.run(
        [sys.executable, '-c', code, '--work-dir', str(tmp_path / 'w'), *arguments],
        env=ENV,
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=600,
    )
    line = error_of(run)
    assert 'epoch_1.pth could not be written' in line and 'No space left' in line
    assert not list((tmp_path / 'w').glob('*epoch_1*'))


@pytest.mark.slow
def test_two_processes(tiny_arguments, tmp_path):
    """torchrun on the CPU: both ranks end with the same weights, checkpoints are written once."""
    torchrun = ('-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', '29611')
    options = [*tiny_arguments, 'train_dataloader.batch_size=2', 'train_cfg.max_epochs=1']
    arguments = (CONFIG, '--launcher', 'pytorch', '--work-dir', tmp_path, *options)
    run = call('train', *arguments, prefix=torchrun)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'batch: 4 images a step (2 x 2 processes)' in run.stdout
    assert torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['meta']['iter'] == 4
    # batch norm's statistics are those of the checkpoint in both processes
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    record = [json.loads(line) for line in log.read_text().splitlines()][-1]
    logged = {name.rpartition('/')[2]: value for name, value in record.items()}
    run = call('test', CONFIG, tmp_path / 'epoch_1.pth', '--work-dir', tmp_path / 't', *options)
    (log,) = (tmp_path / 't').glob('*/*.json')
    tested = json.loads(log.read_text())
    names = [name for name in tested if 'bbox_mAP' in name]
    assert names
    for name in names:
        assert logged[name.rpartition('/')[2]] == pytest.approx(tested[name], nan_ok=True), name
