"""Pictures of predictions: the same colour for a class, nothing hidden, any size."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from res2net_mm.colours import class_colours
from res2net_mm.engine.drawing import draw_classes, draw_sample

NAMES = ['disc', 'square']
GREY = 128


def image(height, width):
    return np.full((height, width, 3), GREY, np.uint8)


def detected(boxes, labels, scores, **more):
    boxes, labels, scores = torch.tensor(boxes).float(), torch.tensor(labels), torch.tensor(scores)
    found = InstanceData(bboxes=boxes, labels=labels, scores=scores, **more)
    return DetDataSample(pred_instances=found)


def near(pixels, colour):
    return np.abs(pixels.astype(int) - colour).max(-1) < 30


def test_colours_are_distinct_and_do_not_change():
    colours = class_colours(80)
    assert len(set(colours)) == 80 and class_colours(3) == colours[:3]
    apart = [np.abs(np.subtract(a, b)).max() for a, b in itertools.combinations(colours[:12], 2)]
    assert min(apart) > 40


@pytest.mark.parametrize(('height', 'width', 'line'), [(150, 200, 1), (480, 640, 2),
                                                       (1500, 2000, 6)])  # fmt: skip
def test_boxes_are_in_the_colours_of_their_classes(height, width, line):
    s = width / 200
    boxes = [[20 * s, 60 * s, 80 * s, 120 * s], [120 * s, 60 * s, 160 * s, 100 * s],
             [5 * s, 5 * s, 9 * s, 9 * s]]  # fmt: skip
    given = image(height, width)
    sample = detected(boxes, [0, 1, 1], [0.9, 0.5, 0.2])
    drawn = draw_sample(given, sample, dict(classes=NAMES), 0.3)
    assert (given == GREY).all() and drawn.shape == given.shape
    for box, colour in zip(boxes[:2], class_colours(2), strict=True):
        x, y = int(box[0]), int((box[1] + box[3]) / 2)
        row = near(drawn[y, : x + 15], colour)
        assert row[x] and row.sum() == pytest.approx(line, abs=1)
    inside = drawn[int(80 * s) : int(100 * s), int(40 * s) : int(60 * s)]
    assert (inside == GREY).all(), 'neither a mask nor a label hides the object'
    assert (drawn[: int(20 * s), : int(15 * s)] == GREY).all(), 'below the threshold'


def test_crowded_images_name_each_class_once():
    """Labels of 100 small objects would hide them; boxes remain."""
    places = [(x, y) for x in range(2, 200, 20) for y in range(12, 200, 20)]
    boxes = [[x, y, x + 8, y + 8] for x, y in places]
    sample = detected(boxes, [i % 2 for i in range(100)], [0.5] * 100)
    drawn = draw_sample(image(210, 210), sample, dict(classes=NAMES), 0.3)
    assert (drawn != GREY).any(-1).mean() < 0.2
    sides = [near(drawn[y + 2 : y + 7, x], class_colours(2)[i % 2]).all()
             for i, (x, y) in enumerate(places)]  # fmt: skip
    assert np.mean(sides) > 0.9


def test_masks_are_translucent():
    mask = torch.zeros(1, 100, 100, dtype=torch.bool)
    mask[0, 40:80, 20:90] = True
    sample = detected([[20, 40, 90, 80]], [1], [0.9], masks=mask)
    drawn = draw_sample(image(100, 100), sample, dict(classes=NAMES), 0.3)
    expected = 0.55 * GREY + 0.45 * np.array(class_colours(2)[1])
    assert np.abs(drawn[60, 50] - expected).max() < 2 and (drawn[30, 95] == GREY).all()


def test_models_without_boxes_or_names():
    mask = torch.zeros(1, 100, 100, dtype=torch.bool)
    mask[0, 40:80, 20:90] = True
    sample = detected([[0, 0, 0, 0]], [0], [0.9], masks=mask)
    drawn = draw_sample(image(100, 100), sample, {}, 0.3)
    assert near(drawn[60, 20], class_colours(1)[0]), 'the left side of a box around the mask'


def test_the_background_of_a_segmentor_stays_clear():
    labels = torch.zeros(1, 200, 200, dtype=torch.uint8)
    labels[0, 50:150, 50:150], labels[0, 160:] = 1, 255  # no class
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    meta = dict(classes=['background', 'disc'], palette=[[0, 0, 0], [0, 0, 250]])
    drawn = draw_sample(image(200, 200), sample, meta, 0.3)
    expected = 0.55 * GREY + 0.45 * np.array([0, 0, 250])
    assert (drawn[labels[0] != 1] == GREY).all()
    assert np.abs(drawn[60, 60] - expected).max() < 2, "in the data set's colour"
    named = drawn[50:150, 50:150].reshape(-1, 3)
    assert near(named, (0, 0, 250)).sum() > 100, 'its name is inside'


def test_annotations_are_on_the_left():
    sample = detected([[20, 40, 90, 80]], [0], [0.9])
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[20.0, 40, 60, 80]]),
                                       labels=torch.tensor([1]))  # fmt: skip
    drawn = draw_sample(image(100, 100), sample, dict(classes=NAMES), 0.3, truth=True)
    assert drawn.shape == (100, 200, 3)
    first, second = class_colours(2)
    assert near(drawn[60, 20], second) and near(drawn[60, 60], second)
    assert near(drawn[60, 120], first) and near(drawn[60, 190], first)


def test_a_segmentor_may_have_a_thousand_classes():
    labels = torch.zeros(1, 100, 100, dtype=torch.long)
    labels[0, 50:] = 1001
    palette = [[0, 0, 0]] * 1001 + [[0, 0, 250]] * 2
    meta = dict(classes=['background', *map(str, range(1, 1003))], palette=palette)
    drawn = draw_sample(
        image(100, 100), SegDataSample(pred_sem_seg=PixelData(data=labels)), meta, 0.3
    )
    expected = 0.55 * GREY + 0.45 * np.array([0, 0, 250])
    assert (drawn[:50] == GREY).all() and np.abs(drawn[95, 95] - expected).max() < 2


def test_label_maps_take_little_memory():
    """A mask of full size for each of 100 classes would take 400 MB."""
    labels = np.repeat(np.arange(100), 20)[:, None].repeat(2000, 1)
    sample = SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))
    given = image(2000, 2000)
    tracemalloc.start()
    drawn = draw_sample(given, sample, dict(classes=[f'c{i}' for i in range(100)]), 0.3)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 200e6 and (drawn[::20, 0] != GREY).any(1).all()


def test_images_of_callers_stay_as_they_are():
    """Also one whose colours are a reversed view, which is contiguous the other way round."""
    given = image(100, 100)
    draw_sample(given[..., ::-1], detected([[20, 40, 90, 80]], [0], [0.9]), {}, 0.3)
    assert (given == GREY).all()


def test_names_of_other_scripts():
    """A letter that a font lacks looks like any other it lacks."""
    boxes = [[10, 60, 190, 190]]
    pictures = [
        draw_sample(image(200, 200), detected(boxes, [0], [0.9]), dict(classes=[name]), 0.3)
        for name in 'öéßжя'
    ]
    for one, other in itertools.combinations(pictures, 2):
        assert (one != other).any()
    rows = [draw_classes(image(20, 100), [dict(score=0, name=name)]) for name in 'öß']
    assert rows[0].shape != rows[1].shape or (rows[0] != rows[1]).any()


def test_panoptic_maps_and_nothing_found():
    parts = torch.full((1, 100, 100), 2)  # mmdet's number for no class
    parts[0, :40], parts[0, 60:] = 0 + 1000, 1 + 2000
    sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=parts))
    drawn = draw_sample(image(100, 100), sample, dict(classes=NAMES), 0.3)
    assert (drawn[50] == GREY).all() and (drawn[2, 2] != drawn[98, 2]).any()
    empty = detected(np.zeros((0, 4)), [], [])
    assert (draw_sample(image(9, 9), empty, dict(classes=NAMES), 0.3) == GREY).all()


def test_of_names_on_each_other_the_surest_is_drawn():
    boxes = [[20, 60, 60, 90], [22, 61, 62, 91], [120, 60, 160, 90]]
    both, one = (
        draw_sample(image(240, 320), detected(boxes[:n], [0, 1, 0][:n], scores[:n]),
                    dict(classes=NAMES), 0.3)
        for n, scores in ((3, [0.9, 0.8, 0.7]), (1, [0.9]))
    )  # fmt: skip
    assert (both[45:58, 10:100] == one[45:58, 10:100]).all(), 'the name of the first'
    assert (both[45:58, 120:] != GREY).any()
