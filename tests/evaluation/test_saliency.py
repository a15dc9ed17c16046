"""SaliencyMetric against PySODMetrics called by hand, and against figures worked out by hand."""

import sys
import warnings

import numpy as np
import pytest
import torch
from metric_samples import build, measured

import res2net_mm

sod = pytest.importorskip('py_sod_metrics')
NAMES = ('background', 'object')


def metric(**kwargs):
    return build('res2net_mm.SaliencyMetric', NAMES, **kwargs)


def sample(found, truth, name):
    return dict(
        seg_logits=dict(data=torch.as_tensor(found)[None]),
        gt_sem_seg=dict(data=torch.as_tensor(truth).long()[None]),
        img_path=name,
    )


def maps(count=4):
    """Probabilities, float32, and masks of images of different sizes; the last has no object."""
    random = np.random.default_rng(5)
    for i in range(count):
        shape = 30 + 7 * i, 41 - 3 * i
        truth = np.zeros(shape, np.uint8)
        if i < count - 1:
            truth[5 + i : 20, 8 : 20 + 2 * i] = 1
        found = 0.55 * truth + 0.4 * random.random(shape)
        yield found.astype(np.float32), truth


def by_hand(pairs, normalize):
    """The package's figures, its older F-measure too."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        parts = sod.MAE(), sod.Fmeasure(), sod.Smeasure(), sod.Emeasure(), sod.WeightedFmeasure()
    for found, truth in pairs:
        for part in parts:
            if normalize:
                part.step(np.rint(found * 255).astype(np.uint8), truth * np.uint8(255))
            else:
                part.step(found.astype(np.float64), truth == 1, normalize=False)
    mae, f, s, e, w = (part.get_results() for part in parts)
    f, e = f['fm'], e['em']
    return dict(
        MAE=mae['mae'],
        maxF=f['curve'].max(),
        meanF=f['curve'].mean(),
        adpF=f['adp'],
        Sm=s['sm'],
        maxE=e['curve'].max(),
        meanE=e['curve'].mean(),
        adpE=e['adp'],
        wF=w['wfm'],
    )


@pytest.mark.parametrize('normalize', [False, True])
def test_figures_are_the_packages(normalize):
    pairs = list(maps())
    samples = [sample(*pair, f'{i}.png') for i, pair in enumerate(pairs)]
    found = measured(metric(normalize=normalize), samples)
    expected = by_hand(pairs, normalize)
    assert list(found) == [f'saliency/{name}' for name in expected]
    for name, value in expected.items():
        assert found[f'saliency/{name}'] == pytest.approx(value, abs=1e-12), name
    assert len({round(value, 6) for value in found.values()}) == len(found)


def test_figures_by_hand():
    """2 x 2 pixels: 0.9 and 0.3 on the object, 0.6 and 0.1 beside it."""
    found = torch.tensor([[0.9, 0.3], [0.6, 0.1]], dtype=torch.float64)
    figures = measured(metric(), [sample(found, np.array([[1, 1], [0, 0]]), 'a.png')])
    assert figures['saliency/MAE'] == pytest.approx((0.1 + 0.7 + 0.6 + 0.1) / 4, abs=1e-12)

    def f(precision, recall):
        return 1.3 * precision * recall / (0.3 * precision + recall)

    # thresholds 0..255 of 8 bits: 25 (0.1), 76 (0.3), 153 (0.6), 229 (0.9)
    curve = 26 * [f(1 / 2, 1)] + 51 * [f(2 / 3, 1)] + 77 * [f(1 / 2, 1 / 2)]
    curve += 76 * [f(1, 1 / 2)] + 26 * [0]
    assert len(curve) == 256
    assert figures['saliency/maxF'] == pytest.approx(max(curve), abs=1e-12)
    assert figures['saliency/meanF'] == pytest.approx(sum(curve) / 256, abs=1e-12)
    # twice the mean is 0.95, above all: the package gives 0
    assert figures['saliency/adpF'] == 0


def test_each_image_counts_once():
    first, *others = [sample(*pair, f'{i}.png') for i, pair in enumerate(maps())]
    once = measured(metric(), [first, *others])
    again = measured(metric(), [first, *others, first])
    assert again == once
    crop = sample(*next(iter(maps(2))), '0.png')
    crop['seg_logits']['data'] = crop['seg_logits']['data'] / 2
    assert measured(metric(), [first, *others, crop]) != once


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_image_that_has_no_s_measure_is_named(monkeypatch):
    """An object in the last column leaves PySODMetrics nothing to the right of it."""
    lines = []
    monkeypatch.setattr('res2net_mm.evaluation.saliency.warn', lines.append)
    truth = np.zeros((8, 9))
    truth[:, -1] = 1
    samples = [sample(truth / 2, truth, 'edge.png'), *(sample(*pair, 'a.png') for pair in maps(2))]
    figures = measured(metric(), [*samples, samples[0]])
    assert np.isnan(figures['saliency/Sm']) and np.isfinite(figures['saliency/wF'])
    assert ['edge.png' in line for line in lines] == [True, True]
    assert figures['saliency/MAE'] == measured(metric(), samples)['saliency/MAE']


def test_half_precision():
    found, truth = next(maps(2))
    half = torch.as_tensor(found).bfloat16()
    ours, theirs = (
        measured(metric(), [sample(values, truth, 'a.png')]) for values in (half, half.float())
    )
    assert ours == theirs


def test_memory_does_not_grow_with_the_images():
    kept = metric()
    for i in range(2):
        found = torch.rand(1, 200, 300)
        kept.process({}, [sample(found[0], found[0] > 0.5, f'{i}.png')])
    sizes = [
        sum(np.asarray(value).nbytes for value in values.values()) for *_, values in kept.results
    ]
    assert max(sizes) <= 8 * (2 * 256 + 7)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(gt_sem_seg=None), 'needs its mask and a model with one channel'),
        (dict(seg_logits=None), 'needs its mask and a model with one channel'),
        (dict(seg_logits=dict(data=torch.zeros(2, 4, 4))), 'one channel; .*out_channels=1'),
        (dict(gt_sem_seg=dict(data=torch.full((1, 4, 4), 255))), 'of 255 to 255, but needs'),
        (dict(gt_sem_seg=dict(data=torch.zeros(1, 4, 5))), r'\(4, 5\) pixels .*\(4, 4\)'),
        (dict(seg_logits=dict(data=torch.full((1, 4, 4), float('nan')))), 'not finite'),
    ],
)
def test_what_cannot_be_measured_is_named(change, message):
    given = sample(torch.zeros(4, 4), torch.zeros(4, 4), 'folder/a.png')
    given = {key: value for key, value in {**given, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        metric().process({}, [given])
    assert 'folder/a.png' in str(error.value)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'py_sod_metrics', None)
    with pytest.raises(ImportError, match=r"pip install 'res2net_mm\[saliency\]'"):
        res2net_mm.SaliencyMetric()
