"""Skeletons on a user's own images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from layouts import BOXES, HEIGHT, WIDTH, image
from mmengine.dataset import Compose
from mmengine.registry import MODELS, init_default_scope

from res2net_mm import Predictor
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.infer import predict_images
from res2net_mm.engine.posing import configured_model
from res2net_mm.engine.sources import find_images

SMALL = {
    'model.backbone.depth': 14,
    'model.backbone.base_channels': 8,
    'model.backbone.base_width': 4,
    'model.backbone.init_cfg': None,
    'model.head.in_channels': 256,
    'model.head.deconv_out_channels': (16, 16, 16),
}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Random weights whose heatmaps differ from person to person."""
    cfg = load_config('td_hm_r2n50_coco_256x192.py', SMALL)
    init_default_scope('mmpose')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for module in model.head.modules():
        if hasattr(module, 'weight') and module.weight.dim() == 4:
            torch.nn.init.kaiming_normal_(module.weight)
    file = tmp_path_factory.mktemp('pose') / 'c.pth'
    torch.save(dict(state_dict=model.state_dict()), file)
    return file


@pytest.fixture
def photos(tmp_path):
    for number in (1, 2):
        image(tmp_path / f'photos/{number}.jpg', number)
    return tmp_path / 'photos'


@pytest.fixture
def boxes(photos):
    """What infer.py writes with a detector: two persons and a dog in 1.jpg, nobody in 2.jpg."""
    found = [dict(name='person', score=0.9 - i / 10, bbox=list(box)) for i, box in enumerate(BOXES)]
    found.append(dict(name='dog', score=0.8, bbox=[0, 0, 9, 9]))
    records = [
        dict(file=str(photos / f'{i}.jpg'), instances=part) for i, part in ((1, found), (2, []))
    ]
    file = photos.parent / 'boxes.json'
    file.write_text(json.dumps(dict(classes=['person', 'dog'], images=records)))
    return str(file)


def pose_model(checkpoint, boxes=None):
    cfg = load_config('td_hm_r2n50_coco_256x192.py', SMALL)
    return configured_model(cfg, str(checkpoint), 'cpu', boxes=boxes)


def test_boxes_of_other_objects_are_refused(boxes, checkpoint):
    content = json.loads(Path(boxes).read_text())
    content['images'][0]['instances'] = []
    Path(boxes).write_text(json.dumps(content))
    pose_model(checkpoint, boxes)  # there may be nobody
    Path(boxes).write_text(json.dumps(dict(content, classes=['cow', 'dog'])))
    with pytest.raises(ToolError, match='no class person, but cow, dog'):
        pose_model(checkpoint, boxes)


def test_keypoints_are_mmposes(checkpoint, photos, boxes):
    from mmpose.apis import inference_topdown

    ours = pose_model(checkpoint, boxes)
    sample = ours.predict(photos / '1.jpg')
    ours.model.cfg = load_config('td_hm_r2n50_coco_256x192.py', SMALL)
    ours.model.dataset_meta = ours.meta
    theirs = inference_topdown(ours.model, str(photos / '1.jpg'), np.array(BOXES, np.float32))
    assert len(theirs) == len(sample.pred_instances) == 2
    for i, expected in enumerate(theirs):
        for key in ('keypoints', 'keypoint_scores', 'bboxes'):
            np.testing.assert_allclose(
                sample.pred_instances[key][i], expected.pred_instances[key][0], rtol=1e-5
            )
    first, second = sample.pred_instances.keypoints
    assert np.abs(first - second).max() > 10, 'each person has keypoints near their own box'
    assert sample.pred_instances.bbox_scores.tolist() == pytest.approx([0.9, 0.8])


def test_flip_test_averages_both_heatmaps(checkpoint, photos):
    """By hand: mirrored back, left and right swapped, and shifted by a pixel."""
    model = pose_model(checkpoint)
    batch = model.prepare(photos / '1.jpg')
    data = model.model.data_preprocessor(batch, False)
    with torch.no_grad():
        straight, mirrored = (
            model.model(x, None) for x in (data['inputs'], data['inputs'].flip(3))
        )
        back = mirrored.flip(3)[:, model.meta['flip_indices']]
        back[..., 1:] = back[..., :-1].clone()
        expected = (straight + back) / 2
    found = model.run(batch).pred_instances
    assert found.keypoint_scores[0].tolist() == pytest.approx(
        expected.flatten(2).max(2).values[0].tolist(), rel=1e-5
    )
    # a peak of the 48 x 64 heatmap, moved by a quarter of its pixel to the higher neighbour,
    # lies in a box of 1.25 times the image's, of shape 3:4
    side = 1.25 * max(WIDTH / 192, HEIGHT / 256)
    peak = np.array(np.unravel_index(expected[0, 0].argmax(), (64, 48)))[::-1]
    place = (found.keypoints[0, 0] - (WIDTH / 2, HEIGHT / 2)) / side / 4 + (24, 32)
    assert np.abs(place - peak).max() <= 0.25 + 1e-4


def test_pictures_and_json(checkpoint, photos, boxes, tmp_path):
    model, out = pose_model(checkpoint, boxes), tmp_path / 'out'
    image(photos / '3.jpg', 3)
    failures = predict_images(model, find_images(photos), out, 0.0)
    assert len(failures) == 1 and '3.jpg is not in the file of --boxes' in failures[0]
    content = json.loads((out / 'predictions.json').read_text())
    assert content['classes'] == ['person']
    first, second = (record['instances'] for record in content['images'])
    assert second == [] and [p['score'] for p in first] == pytest.approx([0.9, 0.8])
    assert first[0]['bbox'] == list(BOXES[0]) and np.shape(first[0]['keypoints']) == (17, 3)
    drawn = [
        np.abs(cv2.imread(str(out / name)).astype(int) - cv2.imread(str(photos / name))).max()
        for name in ('1.jpg', '2.jpg')
    ]
    assert drawn[0] > 150 > 60 > drawn[1], 'skeletons on the first, nothing on the second'


def test_an_image_without_boxes_is_one_person(checkpoint, photos):
    predictor = Predictor(load_config('td_hm_r2n50_coco_256x192.py', SMALL), checkpoint)
    found = predictor(photos / '1.jpg')
    assert found['boxes'].tolist() == [[0, 0, WIDTH, HEIGHT]]
    pixels = cv2.imread(str(photos / '1.jpg'))[..., ::-1]
    again = predictor(pixels)
    assert again['keypoints'].shape == (1, 17, 2) and again['keypoint_scores'].shape == (1, 17)
    np.testing.assert_allclose(again['keypoints'], found['keypoints'], rtol=1e-5)
    assert predictor.classes == ['person']


def test_boxes_that_are_none(checkpoint, tmp_path, tiny_options):
    file = tmp_path / 'boxes.json'
    for text in ('no json', '[]', '{"images": [{"file": "a.jpg"}]}'):
        file.write_text(text)
        with pytest.raises(ToolError, match='is no predictions.json of a detector'):
            pose_model(checkpoint, str(file))
    with pytest.raises(ToolError, match='--boxes is for pose estimators'):
        cfg = load_config('faster_rcnn_r2n14_shapes.py', tiny_options)
        configured_model(cfg, 'c.pth', boxes=str(file))


def test_a_config_without_a_visualizer(checkpoint):
    cfg = load_config('td_hm_r2n50_coco_256x192.py', SMALL)
    cfg.pop('visualizer')
    with pytest.raises(ToolError, match='the config has no visualizer'):
        configured_model(cfg, str(checkpoint), 'cpu')


def test_images_are_loaded_as_by_other_models(checkpoint):
    model = pose_model(checkpoint)
    assert isinstance(model.pipeline, Compose)
    assert type(model.pipeline.transforms[0]).__module__ == 'res2net_mm.data.transforms'
