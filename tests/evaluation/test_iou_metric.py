"""IoUMetric against counts by hand and mmseg's own."""

import numpy as np
import pytest
import torch
from metric_samples import ROOM, build, measured

import res2net_mm  # noqa: F401  (before mmdet)


def label_samples(seed, classes, ignore):
    """Predictions and label maps; class 2 is not in these, class 3 in neither."""
    rng = np.random.default_rng(seed)
    for i in range(3):
        truth = rng.choice([0, 1, *range(4, classes), ignore], (20, 30))
        guess = rng.choice([0, 1, 2, *range(4, classes)], (20, 30))
        predicted = np.where((rng.random((20, 30)) < 0.7) & (truth != ignore), truth, guess)
        yield dict(
            pred_sem_seg=dict(data=torch.from_numpy(predicted)[None]),
            gt_sem_seg=dict(data=torch.from_numpy(truth)[None]),
            img_path=f'{i}.jpg',
            seg_map_path=f'{i}.png',
        )


@pytest.mark.parametrize(('ignore', 'arguments'), [(255, {}), (11, dict(ignore_index=11))])
def test_iou_metric(ignore, arguments):
    names = tuple('abcdefghijk')
    samples = list(label_samples(3, 11, ignore))
    confusion = np.zeros((11, 11))
    for sample in samples:
        truth, predicted = (
            sample[key]['data'].numpy().ravel() for key in ('gt_sem_seg', 'pred_sem_seg')
        )
        for t, p in zip(truth, predicted, strict=True):
            if t != ignore:
                confusion[t, p] += 1
    metric = build(f'{ROOM}.iou_metric.IoUMetric', names, **arguments)
    ours = measured(metric, samples)
    assert np.array_equal(np.array(metric.examined['confusion'])[:, :-1], confusion)
    hits, labelled, guessed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid='ignore'):
        iou, accuracy = hits / (labelled + guessed - hits) * 100, hits / labelled * 100
    assert ours['aAcc'] == pytest.approx(hits.sum() / confusion.sum() * 100, abs=1e-9)
    assert ours['mIoU'] == pytest.approx(np.nanmean(iou), abs=1e-9)
    assert ours['mAcc'] == pytest.approx(np.nanmean(accuracy), abs=1e-9)
    for k, name in enumerate(names):
        assert ours[f'{name}_IoU'] == pytest.approx(iou[k], abs=1e-9, nan_ok=True)
        assert ours[f'{name}_Acc'] == pytest.approx(accuracy[k], abs=1e-9, nan_ok=True)
    assert np.isnan(ours['d_IoU']) and np.isnan(ours['c_Acc']) and ours['c_IoU'] == 0
    theirs = measured(build('mmseg.IoUMetric', names, **arguments), samples)
    assert {key: round(ours[key], 2) for key in theirs} == pytest.approx(theirs, abs=0.011)


def test_label_that_is_no_class_is_named():
    samples = list(label_samples(3, 11, 11))
    metric = build(f'{ROOM}.iou_metric.IoUMetric', tuple('abcdefghijk'))
    with pytest.raises(ValueError, match='0.png.* the id 11.*set ignore_index'):
        metric.process({}, samples)


def test_iou_metric_measures_every_sample(tmp_path):
    """As mmseg's: crops of one image may have equal counts."""
    names = tuple('abcdefghijk')
    samples = list(label_samples(3, 11, 255))
    right, wrong = (torch.full((1, 10, 30), label) for label in (0, 1))
    truth = dict(gt_sem_seg=dict(data=right), img_path='whole.jpg')
    crops = [dict(truth, pred_sem_seg=dict(data=found)) for found in (right, right, right, wrong)]
    assert measured(build(f'{ROOM}.iou_metric.IoUMetric', names), crops)['aAcc'] == 75
    metric = build(f'{ROOM}.iou_metric.IoUMetric', names, output_dir=str(tmp_path))
    paths = ('x/1.jpg', 'y/1.jpg', 'y/1.png', 'x/1.jpg')
    for path in paths:
        metric.process({}, [dict(samples[0], img_path=path)])
    metric.process({}, [dict(samples[1], img_path='x/2.jpg')])
    assert len(list(tmp_path.glob('*.png'))) == 4
    assert {'1.png', '2.png'} < {file.name for file in tmp_path.iterdir()}


def test_samples_that_iou_metric_cannot_measure():
    names = tuple('abcdefghijk')
    sample = next(label_samples(3, 11, 255))
    metric = build(f'{ROOM}.iou_metric.IoUMetric', names)
    without = {key: value for key, value in sample.items() if key != 'gt_sem_seg'}
    with pytest.raises(ValueError, match='0.jpg: it has no label map'):
        metric.process({}, [without])
    smaller = dict(sample, gt_sem_seg=dict(data=sample['gt_sem_seg']['data'][:, :10]))
    with pytest.raises(ValueError, match=r'0.png.* \(10, 30\) pixels'):
        metric.process({}, [smaller])
    logits = torch.zeros(11, 20, 30)
    logits[3, 4, 5] = float('nan')
    with pytest.raises(ValueError, match='logits predicted for 0.jpg are not finite'):
        metric.process({}, [dict(sample, seg_logits=dict(data=logits))])


@pytest.mark.parametrize(
    'arguments',
    [
        dict(iou_metrics=['mDice', 'mFscore'], beta=2),
        dict(iou_metrics='mFscore', nan_to_num=0),
        dict(iou_metrics=['mIoU', 'mDice'], prefix='seg'),
    ],
)
def test_iou_metric_takes_what_mmseg_takes(arguments):
    names, samples = tuple('abcdefghijk'), list(label_samples(3, 11, 255))
    theirs, ours = (
        measured(build(kind, names, **arguments), samples)
        for kind in ('mmseg.IoUMetric', f'{ROOM}.iou_metric.IoUMetric')
    )
    assert {key: round(ours[key], 2) for key in theirs} == pytest.approx(theirs, abs=0.011)
