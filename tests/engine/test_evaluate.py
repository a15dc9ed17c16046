"""Measuring with a model that predicts moved copies of the ground truth: figures are not 0."""

import contextlib
import copy
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from running import ORIGINALS

import res2net_mm  # noqa: F401  (before mmdet)
from res2net_mm.engine.config import load_config
from res2net_mm.engine.drawing import draw_sample
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import run_test
from res2net_mm.engine.runner import build_runner, prepare_config

REPO = Path(__file__).resolve().parents[2]
CLASSES = 4


@MODELS.register_module(force=True)
class MovingDetector(BaseModel):
    """Boxes of the ground truth, each moved, and some of another class."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode='predict'):
        for sample in data_samples:
            random = torch.Generator().manual_seed(int(sample.img_id))
            truth = sample.gt_instances
            boxes = getattr(truth.bboxes, 'tensor', truth.bboxes).clone()
            sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            boxes += 0.1 * sides * torch.randn(boxes.shape, generator=random)
            labels = truth.labels.clone()
            wrong = torch.rand(len(labels), generator=random) < 0.2
            labels[wrong] = (labels[wrong] + 1) % CLASSES
            scores = torch.rand(len(labels), generator=random)
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
            sample.gt_instances.bboxes = getattr(truth.bboxes, 'tensor', truth.bboxes)
        return data_samples


def config_of(root, tmp_path, **options):
    """The synthetic config with that model, and its checkpoint."""
    split = dict(batch_size=2, num_workers=0)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
    ]
    changes = {
        'test_dataloader.dataset.data_root': f'{root}/',
        'test_dataloader.dataset.pipeline': pipeline,
        'test_evaluator.ann_file': f'{root}/annotations/instances_val.json',
        **{f'test_dataloader.{key}': value for key, value in split.items()},
        **options,
    }
    cfg = load_config('configs/faster_rcnn_r2n14_shapes.py', changes)
    cfg.model = dict(type='mmengine.MovingDetector')
    cfg.custom_hooks = []
    checkpoint = tmp_path / 'moving.pth'
    torch.save(dict(state_dict=MovingDetector().state_dict()), checkpoint)
    return prepare_config(cfg, work_dir=str(tmp_path / 'w')), str(checkpoint)


@pytest.fixture
def truth(shapes):
    return json.loads((shapes / 'annotations' / 'instances_val.json').read_text())


def pycocotools_ap(truth, results, images):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), 'bbox')
        run.params.imgIds = images
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[0]


@pytest.mark.parametrize(
    ('options', 'count'),
    [
        ({'test_dataloader.dataset.indices': 5}, 5),
        ({'test_dataloader.drop_last': True, 'test_dataloader.batch_size': 5}, 10),
        ({'test_dataloader.dataset.test_mode': False}, None),
    ],
)
def test_ap_is_of_the_images_that_were_run(shapes, truth, tmp_path, options, count):
    with_boxes = {a['image_id'] for a in truth['annotations']}
    ids = [image['id'] for image in truth['images']]
    if count is None:  # filter_cfg leaves out the images without a box
        root = tmp_path / 'set'
        shutil.copytree(shapes, root)
        gone = set(ids[:4])
        truth['annotations'] = [a for a in truth['annotations'] if a['image_id'] not in gone]
        (root / 'annotations' / 'instances_val.json').write_text(json.dumps(truth))
        options = {**options, 'test_dataloader.dataset.filter_cfg': dict(filter_empty_gt=True)}
        run = [key for key in ids if key in with_boxes - gone]
    else:
        root, run = shapes, ids[:count]
    out = tmp_path / 'new' / 'results.json'
    metrics, classes = run_test(*config_of(root, tmp_path, **options), out=str(out))
    results = json.loads(out.read_text())
    assert {r['image_id'] for r in results} <= set(run) and len(classes) == CLASSES
    expected = pycocotools_ap(truth, results, run)
    assert metrics['coco/bbox_mAP'] == pytest.approx(expected, abs=1e-4)
    assert expected > 0.2
    if count is not None:
        assert pycocotools_ap(truth, results, ids) < 0.9 * expected, 'what it was'
    assert [file.name for file in out.parent.iterdir()] == ['results.json']


def test_several_data_sets_have_a_metric_each(shapes, truth, tmp_path):
    """Two parts of one set, whose ids overlap: each is scored on its own images."""
    cfg, checkpoint = config_of(shapes, tmp_path)
    whole, evaluator = cfg.test_dataloader.dataset, cfg.test_evaluator
    parts = [dict(whole, indices=n) for n in (4, 7)]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    metrics = [dict(evaluator, outfile_prefix=str(tmp_path / name)) for name in 'ab']
    cfg.test_evaluator = dict(
        type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['a', 'b']
    )
    with pytest.raises(ToolError, match='set outfile_prefix of test_evaluator.metrics'):
        run_test(cfg, checkpoint, out=str(tmp_path / 'out.json'))
    found, classes = run_test(cfg, checkpoint)
    assert len(classes) == CLASSES
    ids = [image['id'] for image in truth['images']]
    for name, count in (('a', 4), ('b', 7)):
        results = json.loads((tmp_path / f'{name}.bbox.json').read_text())
        expected = pycocotools_ap(truth, results, ids[:count])
        assert found[f'{name}/coco/bbox_mAP'] == pytest.approx(expected, abs=1e-4)


def test_proposals(shapes, tmp_path):
    cfg, checkpoint = config_of(shapes, tmp_path)
    cfg.test_evaluator.metric = ['bbox', 'proposal', 'proposal_fast']
    metrics, _ = run_test(cfg, checkpoint)
    names = {f'coco/proposal_fast_AR@{n}' for n in (100, 300, 1000)}
    assert names < set(metrics) and 'coco/AR_l@1000' in metrics
    assert metrics['coco/AR@100'] == pytest.approx(metrics['coco/proposal_fast_AR@100'], abs=0.02)
    assert metrics['coco/AR@100'] > metrics['coco/bbox_AR@100'] > 0.2


# files


def set_of_folders(shapes, truth, root, names):
    """A set of the first images under these names."""
    images = truth['images'][: len(names)]
    for image, name in zip(images, names, strict=True):
        (root / 'val' / name).parent.mkdir(parents=True)
        shutil.copy(shapes / 'val' / image['file_name'], root / 'val' / name)
        image['file_name'] = name
    ids = {image['id'] for image in images}
    own = [a for a in truth['annotations'] if a['image_id'] in ids]
    (root / 'annotations').mkdir()
    (root / 'annotations' / 'instances_val.json').write_text(
        json.dumps({**truth, 'images': images, 'annotations': own})
    )
    return root


SAME = [f'f{i}/deep/1.jpg' for i in range(6)]


def test_every_image_has_a_picture_of_its_own(shapes, truth, tmp_path):
    """Six images of one name in six folders."""
    root, shown = set_of_folders(shapes, truth, tmp_path / 'set', SAME), tmp_path / 'shown'
    run_test(*config_of(root, tmp_path), show_dir=str(shown))
    found = {str(file.relative_to(shown)) for file in shown.rglob('*') if file.is_file()}
    assert found == set(SAME)
    assert len({(shown / name).read_bytes() for name in found}) == 6


def test_pictures_never_replace_images(shapes, truth, tmp_path):
    root = set_of_folders(shapes, truth, tmp_path / 'set', SAME)
    before = {file: file.read_bytes() for file in root.rglob('*.jpg')}
    with pytest.raises(ToolError, match='would replace the image .*f0/deep/1.jpg'):
        run_test(*config_of(root, tmp_path), show_dir=str(root / 'val'))
    assert {file: file.read_bytes() for file in root.rglob('*.jpg')} == before


def test_pictures_of_validation(shapes, truth, tmp_path):
    root = set_of_folders(shapes, truth, tmp_path / 'set', SAME)
    cfg, _ = config_of(root, tmp_path)
    cfg.val_dataloader = dict(cfg.test_dataloader, batch_size=1)
    cfg.val_evaluator = cfg.test_evaluator
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.default_hooks.visualization = dict(type='DetVisualizationHook', draw=True, interval=1)
    cfg = prepare_config(cfg, work_dir=str(tmp_path / 'v'))
    # a visualizer of this name that an earlier test made writes elsewhere
    cfg.visualizer = dict(cfg.visualizer, name='of validation')
    build_runner(cfg).val()
    found = sorted(file.name for file in (tmp_path / 'v').rglob('vis_image/*'))
    assert found == [f'val_f{i}_deep_1.jpg_{i}.png' for i in range(6)]


def test_hooks_that_show_windows_stay(tmp_path):
    cfg = load_config('configs/faster_rcnn_r2n14_shapes.py')
    given = dict(type='mmseg.SegVisualizationHook', draw=True, show=True)
    cfg.default_hooks.visualization = given
    assert prepare_config(cfg, work_dir=str(tmp_path)).default_hooks.visualization == given


@pytest.mark.parametrize(
    ('option', 'target'),
    [
        ('out', 'file/results.json'),
        ('out', 'folder'),
        ('out', '/dev/null'),
        ('show_dir', 'file'),
        ('show_dir', 'file/shown'),
    ],
)
def test_where_nothing_can_be_written_nothing_is_run(shapes, tmp_path, option, target):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'folder').mkdir()
    cfg, checkpoint = config_of(shapes, tmp_path)
    with pytest.raises(OSError, match=f'--{option.replace("_", "-")} .* cannot be written'):
        run_test(cfg, checkpoint, **{option: str(tmp_path / target)})
    assert (tmp_path / 'file').read_text() == 'mine' and not (tmp_path / 'w').exists()
    assert Path('/dev/null').is_char_device()


def test_figures_come_though_files_cannot_be_written(shapes, tmp_path, monkeypatch):
    """What was fine before the test is so no longer: files lie where folders should be."""
    forward, reported = MovingDetector.forward, []
    folder, shown = tmp_path / 'o', tmp_path / 'shown'

    def spoil(self, *args, **kwargs):
        for path in (folder, shown):
            path.write_text('mine')
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MovingDetector, 'forward', spoil)
    files = dict(out=str(folder / 'results.json'), show_dir=str(shown))
    for kept, part in (('out', 'json was not written.*exists'), ('show_dir', '12 pictures')):
        with pytest.raises(ToolError, match=part):
            run_test(
                *config_of(shapes, tmp_path),
                **{kept: files[kept]},
                report=lambda metrics, classes: reported.append(metrics),
            )
        for path in (folder, shown):
            assert path.read_text() == 'mine'
            path.unlink()
    assert [metrics['coco/bbox_mAP'] > 0.2 for metrics in reported] == [True, True]


def test_a_picture_that_fails_is_reported_after_the_figures(shapes, tmp_path, monkeypatch):
    reported = []

    def fail_once(pixels, sample, *args, **kwargs):
        if '100003' in sample.img_path:
            raise RuntimeError('no font')
        return draw_sample(pixels, sample, *args, **kwargs)

    monkeypatch.setattr('res2net_mm.engine.pictures.draw_sample', fail_once)
    shown = tmp_path / 'shown'
    with pytest.raises(ToolError, match=r'1 pictures .*100003.jpg: no font'):
        run_test(
            *config_of(shapes, tmp_path), show_dir=str(shown), report=lambda *a: reported.append(a)
        )
    assert reported and len(list(shown.iterdir())) == 11


def test_nothing_that_is_not_finite_is_measured(shapes, tmp_path, monkeypatch):
    forward = MovingDetector.forward

    def broken(self, *args, **kwargs):
        samples = forward(self, *args, **kwargs)
        samples[-1].pred_instances.bboxes[0, 2] = np.inf
        return samples

    monkeypatch.setattr(MovingDetector, 'forward', broken)
    with pytest.raises(ValueError, match='bboxes predicted for .*jpg are not finite'):
        run_test(*config_of(shapes, tmp_path))


@pytest.mark.slow
def test_on_the_originals():
    """All of the above with the original packages."""
    if not ORIGINALS.is_dir():
        pytest.skip(f'the original packages are not in {ORIGINALS}: make test lays them there')
    path = os.pathsep.join([str(ORIGINALS), str(REPO)])
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-k', 'not originals',
         __file__],
        env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert ' passed' in run.stdout


def test_the_config_of_the_run_stays(shapes, tmp_path):
    """A test in the folder of a run would else leave its own options there."""
    cfg, checkpoint = config_of(shapes, tmp_path)
    run = Path(cfg.work_dir, Path(cfg.filename).name)
    run.parent.mkdir(exist_ok=True)
    run.write_text('# of the training run')
    run_test(cfg, checkpoint, out=str(tmp_path / 'results.json'))
    assert run.read_text() == '# of the training run'
    assert not [*tmp_path.glob('.*.json')]
