"""The pipeline steps: whole images load as mmcv loads them, others are named; empty boxes go."""

from __future__ import annotations

import copy
import io
import os
import re
from types import SimpleNamespace

import cv2
import mmcv.transforms
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from PIL import Image
from written_sets import DATA, real_data

import res2net_mm  # noqa: F401  registers the scope
from res2net_mm.data.errors import DataError
from res2net_mm.data.transforms import (
    CheckLabelMap,
    DropEmptyBoxes,
    LoadImageFromFile,
    harden_dataset,
    harden_pipeline,
    loader_of,
    truncation,
)

OUR_LOADER = 'res2net_mm.LoadImageFromFile'
OUR_DROP = 'res2net_mm.DropEmptyBoxes'
OUR_LOOK = 'res2net_mm.CheckLabelMap'


def noise(channels: int, dtype: type = np.uint8, size: tuple[int, int] = (9, 11)) -> np.ndarray:
    top = np.iinfo(dtype).max
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(0).integers(0, top, shape, dtype=dtype, endpoint=True)


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def thumbnail_exif() -> bytes:
    """An EXIF block, orientation 6, whose second directory points to a whole JPEG."""
    small = encoded(noise(3, size=(8, 8)), 'JPEG')
    entry = lambda tag, kind, value: (  # noqa: E731
        tag.to_bytes(2, 'little')
        + kind.to_bytes(2, 'little')
        + (1).to_bytes(4, 'little')
        + value.to_bytes(4, 'little')
    )
    first = (1).to_bytes(2, 'little') + entry(0x0112, 3, 6) + (26).to_bytes(4, 'little')
    second = (
        (2).to_bytes(2, 'little') + entry(0x0201, 4, 56) + entry(0x0202, 4, len(small)) + bytes(4)
    )
    return b'Exif\0\0' + b'II*\0\x08\0\0\0' + first + second + small


WHOLE = {
    'colour.jpg': lambda: encoded(noise(3), 'JPEG'),
    'grey.jpg': lambda: encoded(noise(1), 'JPEG'),
    'cmyk.jpg': lambda: encoded(noise(4), 'JPEG', mode='CMYK'),
    'progressive.jpg': lambda: encoded(noise(3), 'JPEG', progressive=True),
    'restarts.jpg': lambda: cv2.imencode('.jpg', noise(3), [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[
        1
    ].tobytes(),
    'thumbnail.jpg': lambda: encoded(noise(3), 'JPEG', exif=thumbnail_exif()),
    'colour.png': lambda: encoded(noise(3), 'PNG'),
    'rgba.png': lambda: encoded(noise(4), 'PNG'),
    'grey.png': lambda: encoded(noise(1), 'PNG'),
    'grey16.png': lambda: encoded(noise(1, np.uint16), 'PNG'),
    'colour16.png': lambda: cv2.imencode('.png', noise(3, np.uint16))[1].tobytes(),
    'palette.png': lambda: cv2.imencode('.png', noise(1) // 64)[1].tobytes(),
    'colour.bmp': lambda: encoded(noise(3), 'BMP'),
    'colour.webp': lambda: encoded(noise(3), 'WEBP'),
}
ARGUMENTS = [
    {},
    {'to_float32': True},
    {'color_type': 'grayscale'},
    {'color_type': 'unchanged'},
    {'imdecode_backend': 'pillow'},
    {'ignore_empty': True, 'backend_args': {'backend': 'local'}},
]


@pytest.mark.parametrize('arguments', ARGUMENTS, ids=str)
@pytest.mark.parametrize('name', WHOLE)
def test_whole_images_load_as_in_mmcv(tmp_path, name, arguments):
    file = tmp_path / name
    file.write_bytes(WHOLE[name]())
    ours = LoadImageFromFile(**arguments)({'img_path': str(file), 'other': 1})
    theirs = mmcv.transforms.LoadImageFromFile(**arguments)({'img_path': str(file), 'other': 1})
    assert ours.keys() == theirs.keys()
    assert ours['img'].dtype == theirs['img'].dtype
    np.testing.assert_array_equal(ours['img'], theirs['img'])
    assert ours['img_shape'] == theirs['img_shape'] == ours['ori_shape'] == theirs['ori_shape']
    assert repr(LoadImageFromFile(**arguments)) == repr(
        mmcv.transforms.LoadImageFromFile(**arguments)
    )


def test_every_colour_depth_loads_as_three_bytes_a_pixel(tmp_path):
    for name in ('grey.jpg', 'rgba.png', 'grey.png', 'grey16.png', 'colour16.png'):
        file = tmp_path / name
        file.write_bytes(WHOLE[name]())
        image = LoadImageFromFile()({'img_path': str(file)})['img']
        assert image.shape == (9, 11, 3) and image.dtype == np.uint8, name


def test_the_thumbnail_of_the_test_is_one(tmp_path):
    content = WHOLE['thumbnail.jpg']()
    assert content.count(b'\xff\xda') >= 2 and content.count(b'\xff\xd9') >= 2
    file = tmp_path / 'thumbnail.jpg'
    file.write_bytes(content)
    # its orientation turns it
    assert LoadImageFromFile()({'img_path': str(file)})['img'].shape == (11, 9, 3)


@pytest.mark.parametrize('name', [name for name in WHOLE if name.endswith(('jpg', 'png'))])
def test_an_image_cut_anywhere_is_an_error_that_names_it(tmp_path, name):
    content = WHOLE[name]()
    file = tmp_path / name
    assert truncation(content) is None
    for length in range(8, len(content)):
        assert truncation(content[:length]), length
    for length in (1, 2, 3, 8, 20, 100, len(content) // 2, len(content) - 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(DataError, match='truncated|decode') as caught:
            LoadImageFromFile()({'img_path': str(file)})
        assert str(file) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', [name for name in WHOLE if name.endswith(('jpg', 'png'))])
def test_bytes_after_the_end_do_no_harm(tmp_path, name):
    """As in a photograph with a film behind it, whose bytes look like markers."""
    content = WHOLE[name]()
    for tail in (bytes(100), b'\xff\xda' + bytes(50), b'\xff\xd8\xff\xd9', b'IEND'):
        assert truncation(content + tail) is None
    (tmp_path / name).write_bytes(content + b'\xff\xda' + bytes(50))
    image = LoadImageFromFile()({'img_path': str(tmp_path / name)})['img']
    (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(
        image, LoadImageFromFile()({'img_path': str(tmp_path / name)})['img']
    )


@pytest.mark.parametrize(
    'content, reason',
    [
        (None, 'No such file'),
        (b'', 'is empty'),
        (b'<html>not found</html>', 'it is no image'),
        (b'\xff\xd8\xff' + bytes(500), 'is truncated'),
        (encoded(noise(3), 'JPEG')[:-100] + bytes(100), 'is truncated'),
        (encoded(noise(3), 'PNG')[:-12], 'is truncated'),
    ],
)
def test_bad_files(tmp_path, content, reason):
    file = tmp_path / 'photo.jpg'
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        LoadImageFromFile()({'img_path': str(file)})
    assert str(file) in str(caught.value) and 'replace or remove the file' in str(caught.value)
    assert LoadImageFromFile(ignore_empty=True)({'img_path': str(file)}) is None


def test_a_folder_and_a_decoder_that_raises(tmp_path):
    with pytest.raises(DataError, match='cannot be read'):
        LoadImageFromFile()({'img_path': str(tmp_path)})
    (tmp_path / 'text.bmp').write_bytes(b'text')
    with pytest.raises(DataError, match='text.bmp: .*cannot identify'):
        LoadImageFromFile(imdecode_backend='pillow')({'img_path': str(tmp_path / 'text.bmp')})


def test_a_wrong_argument_is_not_called_bad_data(tmp_path):
    (tmp_path / 'a.png').write_bytes(WHOLE['colour.png']())
    with pytest.raises(ValueError, match='backend') as caught:
        LoadImageFromFile(imdecode_backend='magic')({'img_path': str(tmp_path / 'a.png')})
    assert not isinstance(caught.value, DataError)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# stored as 11 x 9 px
TURNED = encoded(noise(3), 'JPEG', exif=exif(6))
PLAIN = encoded(noise(3), 'JPEG')
UNTURNED = {'color_type': 'color_ignore_orientation'}


@pytest.mark.parametrize(
    'content, annotated, arguments, said',
    [
        (PLAIN, (11, 9), {}, None),
        (PLAIN, (11.0, 9.0), {}, None),
        (PLAIN, (9, 11), {}, 'has 11 x 9 px, its annotations are for 9 x 11'),
        (PLAIN, (22, 18), {}, 'has 11 x 9 px, its annotations are for 22 x 18'),
        (PLAIN, (0, 0), {}, None),  # what VOC files without a size say
        (PLAIN, (None, None), {}, None),
        (TURNED, (9, 11), {}, None),
        (TURNED, (11, 9), {}, 'color_ignore_orientation'),
        (TURNED, (11, 9), UNTURNED, None),
        (TURNED, (9, 11), UNTURNED, "color_type='color'"),
        (TURNED, (11, 9), {'imdecode_backend': 'pillow'}, 'EXIF'),
    ],
)
def test_images_have_the_size_that_their_annotations_are_for(
    tmp_path, content, annotated, arguments, said
):
    file = tmp_path / 'photo.jpg'
    file.write_bytes(content)
    results = {'img_path': str(file), 'width': annotated[0], 'height': annotated[1]}
    if said is None:
        assert LoadImageFromFile(**arguments)(results)['img'].shape[2] == 3
        return
    for ignore_empty in (False, True):  # an image that is there is not empty
        with pytest.raises(DataError, match=re.escape(said)) as caught:
            LoadImageFromFile(**arguments, ignore_empty=ignore_empty)(results)
        assert str(file) in str(caught.value) and '\n' not in str(caught.value)


def test_width_for_height_in_an_xml_file_is_passed_where_its_boxes_fit(tmp_path):
    """As in VOC2012's 2011_003353; boxes that fit only the size as written are for that."""
    file = tmp_path / 'photo.jpg'
    file.write_bytes(PLAIN)
    results = {'img_path': str(file), 'xml_path': 'photo.xml', 'width': 9, 'height': 11}
    with pytest.warns(UserWarning, match='photo.jpg: .* 9 x 11'):
        LoadImageFromFile()({**results, 'instances': [{'bbox': [0, 0, 11, 9]}]})
    with pytest.raises(DataError, match='11 x 9'):
        LoadImageFromFile()({**results, 'instances': [{'bbox': [0, 0, 9, 11]}]})
    file.write_bytes(TURNED)  # to 9 x 11
    with pytest.raises(DataError, match='EXIF'):
        LoadImageFromFile()({**results, 'width': 11, 'height': 9})


@pytest.mark.parametrize(
    'name, arguments',
    [(name, arguments) for name in WHOLE for arguments in ({}, {'color_type': 'grayscale'})]
    + [('grey16.png', {'color_type': 'unchanged'}), ('rgba.png', {'color_type': 'unchanged'})],
)
def test_pictures_for_people_are_of_three_bytes_and_as_loaded(tmp_path, name, arguments):
    file = tmp_path / name
    file.write_bytes(WHOLE[name]())
    loader = LoadImageFromFile(**arguments)
    picture, image = loader.picture(str(file)), loader({'img_path': str(file)})['img']
    assert picture.dtype == np.uint8 and picture.shape == (*image.shape[:2], 3)
    if image.dtype == np.uint8:
        np.testing.assert_array_equal(picture, np.atleast_3d(image)[..., :3] + 0 * picture)
    else:
        assert picture.min() == 0 and picture.max() == 255


@pytest.mark.parametrize('kind', ['pipe', 'loop', 'folder'])
def test_what_is_no_file_is_named_at_once(tmp_path, kind):
    file = tmp_path / 'photo.jpg'
    make = {'pipe': os.mkfifo, 'folder': os.mkdir, 'loop': lambda path: os.symlink(path, path)}
    make[kind](file)
    with pytest.raises(DataError, match='photo.jpg: .*cannot be read'):
        LoadImageFromFile()({'img_path': str(file)})


@pytest.mark.parametrize('shape, fits', [((9, 11), True), ((11, 9), False), ((18, 22), False)])
def test_label_maps_are_of_the_size_that_the_image_was_loaded_with(shape, fits):
    results = {'gt_seg_map': np.zeros(shape, np.uint8), 'ori_shape': (9, 11), 'img_path': 'a.jpg'}
    results |= {'seg_map_path': 'a.png', 'img': np.zeros((90, 110, 3)), 'img_shape': (90, 110)}
    if fits:
        assert CheckLabelMap()(results) is results
    else:
        with pytest.raises(DataError, match=f'a.png: .* {shape[1]} x {shape[0]} px.* 11 x 9 px'):
            CheckLabelMap()(results)
    assert CheckLabelMap()({'img_path': 'a.jpg'}) == {'img_path': 'a.jpg'}


@real_data
def test_every_real_image_is_whole():
    folders = ('bccd/JPEGImages', 'coco_ccby/val', 'nuclei/images/val', 'camvid/img_dir/val')
    for folder in folders:
        files = sorted(os.scandir(os.path.join(DATA, folder)), key=lambda entry: entry.name)
        assert files
        for file in files:
            with open(file.path, 'rb') as stream:
                content = stream.read()
            assert truncation(content) is None, file.path
            assert truncation(content[: len(content) * 2 // 3]), file.path


@pytest.mark.parametrize('package', ['mmengine', 'mmdet', 'mmseg'])
def test_built_from_every_registry(package):
    registry = pytest.importorskip(f'{package}.registry').TRANSFORMS
    assert type(registry.build({'type': OUR_LOADER})) is LoadImageFromFile
    assert type(registry.build({'type': OUR_DROP})) is DropEmptyBoxes
    assert ROOT_TRANSFORMS.get('LoadImageFromFile') is mmcv.transforms.LoadImageFromFile


# (x1, y1, x2, y2) -> usable in an image of 40x30
BOXES = [
    ((0, 0, 10, 10), True),
    ((5, 5, 5, 9), False),
    ((5, 5, 9, 5), False),
    ((-1, -1, -1, -1), False),
    ((9, 2, 3, 8), False),
    ((float('nan'), 0, 4, 4), False),
    ((0, 0, float('inf'), 4), False),
    ((39, 29, 80, 80), True),
    ((40, 5, 50, 9), False),
    ((5, 30, 9, 40), False),
    ((-9, -9, 0, 4), False),
    ((3, 3, 3.5, 3.25), True),
]


def results_with(boxes: object) -> dict:
    count = len(BOXES)
    return {
        'ori_shape': (30, 40),
        'gt_bboxes': boxes,
        'gt_bboxes_labels': np.arange(count),
        'gt_ignore_flags': np.arange(count) % 2 == 0,
        'instances': [{'number': i} for i in range(count)],
    }


@pytest.mark.parametrize('kind', ['array', 'HorizontalBoxes'])
def test_empty_boxes_go_with_all_that_is_theirs(kind):
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks, PolygonMasks

    corners = np.array([box for box, _ in BOXES], np.float32)
    wanted = [i for i, (_, usable) in enumerate(BOXES) if usable]
    for masks in (
        BitmapMasks(np.arange(len(BOXES))[:, None, None] * np.ones((1, 2, 2)), 2, 2),
        PolygonMasks([[np.full(6, i)] for i in range(len(BOXES))], 2, 2),
    ):
        boxes = corners if kind == 'array' else HorizontalBoxes(torch.from_numpy(corners))
        results = DropEmptyBoxes()({**results_with(boxes), 'gt_masks': masks})
        assert type(results['gt_bboxes']) is type(boxes)
        left = results['gt_bboxes'] if kind == 'array' else results['gt_bboxes'].tensor.numpy()
        np.testing.assert_array_equal(left, corners[wanted])
        assert results['gt_bboxes_labels'].tolist() == wanted
        assert results['gt_ignore_flags'].tolist() == [i % 2 == 0 for i in wanted]
        assert [instance['number'] for instance in results['instances']] == wanted
        assert type(results['gt_masks']) is type(masks) and len(results['gt_masks']) == len(wanted)
        for i, mask in zip(wanted, results['gt_masks'], strict=True):
            assert np.unique(mask).tolist() == [i]


def test_nothing_to_drop_changes_nothing():
    boxes = np.array([[0, 0, 4, 4], [1, 1, 2, 2]], np.float32)
    for results in (
        {'ori_shape': (9, 9), 'gt_bboxes': boxes, 'gt_bboxes_labels': np.arange(2)},
        {'gt_bboxes': boxes[:0], 'gt_bboxes_labels': np.arange(0)},
        {'img': np.zeros((2, 2, 3))},
    ):
        before = dict(results)
        after = DropEmptyBoxes()(results)
        assert after is results and after.keys() == before.keys()
        assert all(after[key] is before[key] for key in before)


def test_all_boxes_may_go_and_the_image_size_may_be_unknown():
    from mmdet.structures.bbox import HorizontalBoxes

    results = DropEmptyBoxes()(
        {'gt_bboxes': HorizontalBoxes([[3, 3, 3, 3]]), 'gt_bboxes_labels': np.arange(1)}
    )
    assert len(results['gt_bboxes']) == len(results['gt_bboxes_labels']) == 0
    kept = DropEmptyBoxes()({'gt_bboxes': np.array([[100.0, 100, 200, 200]])})
    assert len(kept['gt_bboxes']) == 1


def test_what_is_dropped_is_what_breaks_the_regression_target():
    from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import bbox2delta

    boxes = np.array([[5, 5, 5, 9], [1, 1, 8, 9]], np.float32)
    anchors = torch.tensor([[4.0, 4, 9, 9]]).expand(2, 4)
    assert not bbox2delta(anchors, torch.from_numpy(boxes)).isfinite().all()
    kept = DropEmptyBoxes()({'gt_bboxes': boxes})['gt_bboxes']
    assert bbox2delta(anchors[:1], torch.from_numpy(kept)).isfinite().all()


DETECTION = [
    {'type': 'LoadImageFromFile', 'backend_args': None},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'Resize', 'scale': (640, 480)},
    {'type': 'PackDetInputs'},
]


def types(pipeline: list) -> list:
    return [step['type'] for step in pipeline]


def test_a_detection_pipeline():
    before = copy.deepcopy(DETECTION)
    hardened = harden_pipeline(DETECTION)
    assert DETECTION == before
    assert types(hardened) == [OUR_LOADER, 'LoadAnnotations', OUR_DROP, 'Resize', 'PackDetInputs']
    assert hardened[0] == {'type': OUR_LOADER, 'backend_args': None}
    assert harden_pipeline(hardened) == hardened
    assert types(harden_pipeline(DETECTION, drop_empty=False)) == [OUR_LOADER, *types(before)[1:]]


@pytest.mark.parametrize(
    'annotations, drops',
    [
        ({'type': 'LoadAnnotations'}, True),
        ({'type': 'LoadAnnotations', 'with_bbox': False}, False),
        ({'type': 'mmdet.LoadAnnotations', 'with_mask': True}, True),
        ({'type': 'mmcv.LoadAnnotations', 'with_bbox': True}, True),
        ({'type': 'LoadPanopticAnnotations', 'with_bbox': True}, False),
    ],
)
def test_where_boxes_are_loaded(annotations, drops):
    hardened = harden_pipeline([DETECTION[0], annotations, DETECTION[-1]])
    assert types(hardened).count(OUR_DROP) == drops
    if drops:
        assert types(hardened)[2] == OUR_DROP


@pytest.mark.parametrize('scope', ['', 'mmcv.', 'mmdet.', 'mmseg.'])
def test_a_segmentation_pipeline_gets_the_loader_and_a_look_at_the_maps(scope):
    pipeline = [
        {'type': f'{scope}LoadImageFromFile'},
        {'type': 'LoadAnnotations'},
        {'type': 'PackSegInputs'},
    ]
    hardened = harden_pipeline(pipeline)
    assert types(hardened) == [OUR_LOADER, 'LoadAnnotations', OUR_LOOK, 'PackSegInputs']
    assert harden_pipeline(hardened) == hardened
    # each of these is one choice
    augmented = {'type': 'TestTimeAug', 'transforms': [[{'type': 'mmseg.LoadAnnotations'}]]}
    assert harden_pipeline([augmented]) == [augmented]


def test_classes_as_types_and_transforms_already_built():
    from mmdet.datasets.transforms import LoadAnnotations

    class Own(mmcv.transforms.LoadImageFromFile):
        pass

    built = LoadImageFromFile()
    pipeline = [
        {'type': mmcv.transforms.LoadImageFromFile},
        {'type': Own},
        {'type': LoadAnnotations, 'with_bbox': True},
        built,
    ]
    hardened = harden_pipeline(pipeline)
    assert types(hardened[:-1]) == [OUR_LOADER, Own, LoadAnnotations, OUR_DROP]
    assert hardened[-1] is built


def test_pipelines_within_transforms():
    load, annotations = DETECTION[:2]
    pipeline = [
        {'type': 'MultiBranch', 'branch_field': ['sup'], 'sup': [load, annotations]},
        {'type': 'RandomApply', 'transforms': [load, annotations], 'prob': 0.5},
        {'type': 'TestTimeAug', 'transforms': [[load], [annotations], [DETECTION[-1]]]},
        {'type': 'RandomChoice', 'transforms': [[load], [annotations]], 'prob': [0.5, 0.5]},
    ]
    branch, apply, tta, choice = harden_pipeline([ConfigDict(step) for step in pipeline])
    assert types(branch['sup']) == [OUR_LOADER, 'LoadAnnotations', OUR_DROP]
    assert branch['branch_field'] == ['sup']
    assert types(apply['transforms']) == [OUR_LOADER, 'LoadAnnotations', OUR_DROP]
    for alternatives in (tta['transforms'], choice['transforms']):
        assert [types(part) for part in alternatives[:2]] == [[OUR_LOADER], ['LoadAnnotations']]
    assert isinstance(branch, ConfigDict)


def test_a_loader_is_made_of_a_step_of_an_inherited_config():
    """mmengine adds ``_scope_`` to what ``_base_ = 'mmdet::...'`` brings."""
    step = {**DETECTION[0], '_scope_': 'mmdet', 'to_float32': True, 'color_type': 'grayscale'}
    loader = loader_of([{'type': 'Other'}, step])
    assert (loader.color_type, loader.to_float32) == ('grayscale', False)
    assert loader_of([]).color_type == 'color'


def test_datasets_below_wrappers():
    leaf = {'type': 'CocoDataset', 'pipeline': DETECTION}
    dataset = ConfigDict(
        type='RepeatDataset',
        dataset=dict(
            type='ConcatDataset',
            datasets=[leaf, {**leaf, 'test_mode': True}],
        ),
        times=2,
    )
    before = copy.deepcopy(dataset)
    hardened = harden_dataset(dataset)
    assert dataset == before
    train, val = hardened['dataset']['datasets']
    assert types(train['pipeline'])[:3] == [OUR_LOADER, 'LoadAnnotations', OUR_DROP]
    assert OUR_DROP not in types(val['pipeline']) and types(val['pipeline'])[0] == OUR_LOADER
    mixed = harden_dataset({'type': 'MultiImageMixDataset', 'dataset': leaf, 'pipeline': DETECTION})
    assert OUR_DROP in types(mixed['pipeline']) and OUR_DROP in types(mixed['dataset']['pipeline'])
    built = object()
    assert harden_dataset({'type': 'ConcatDataset', 'datasets': [built]})['datasets'] == [built]


def test_rotated_boxes_are_left_alone():
    boxes = SimpleNamespace(tensor=torch.tensor([[5.0, 5, 4, 2, 0.3]] * 4))
    assert DropEmptyBoxes()({'gt_bboxes': boxes})['gt_bboxes'] is boxes
