"""Folders of every format are recognised, with all images and their annotations."""

import codecs
import json

import pytest
import yaml
from own_folders import (
    CLASSES,
    SPLITS,
    scenes,
    write_coco,
    write_images,
    write_labelme,
    write_masks,
    write_roboflow_yolo,
    write_voc,
    write_yolo,
)

from res2net_mm.data.errors import DataError
from res2net_mm.data.folders import recognise


def counts(folder):
    return {split: len(pairs) for split, pairs in folder.splits.items()}


def stems(folder, split):
    return [(image.stem, file.stem) for image, file in folder.splits[split]]


def test_voc_without_lists(tmp_path):
    """As the raccoon set is laid out: images/, annotations/, nothing else."""
    write_voc(tmp_path, scenes(12))
    found = recognise(tmp_path, 'boxes')
    assert (found.format, counts(found), found.notes) == ('voc', {'all': 12}, [])
    assert stems(found, 'all') == [(name, name) for name in scenes(12)]


def test_the_folder_of_the_annotations_may_have_any_name(tmp_path):
    write_voc(tmp_path, scenes(3), 'images/train', 'train/corrected')
    write_voc(tmp_path, scenes(2), 'images/val', 'val/corrected')
    assert counts(recognise(tmp_path, 'boxes')) == {'train': 3, 'val': 2}


def test_voc_with_lists(tmp_path):
    write_voc(tmp_path / 'VOC2007', scenes(6), 'JPEGImages', 'Annotations')
    lists = tmp_path / 'VOC2007/ImageSets/Main'
    lists.mkdir(parents=True)
    names = list(scenes(6))
    (lists / 'train.txt').write_text('\n'.join(names[:3]))
    (lists / 'trainval.txt').write_text('\n'.join(names[:5]))
    (lists / 'cat_train.txt').write_text(f'{names[0]}  1\n')
    found = recognise(tmp_path, 'boxes')
    assert counts(found) == {'all': 5}  # without val.txt, trainval is what there is
    for name in ('val', 'valid', 'Validation'):
        (lists / f'{name}.txt').write_text('\n'.join([*names[3:5], 'gone']))
        found = recognise(tmp_path, 'boxes')
        assert counts(found) == {'train': 3, 'val': 2}
        note = f'1 names of {name}.txt have no image with an annotation file: gone'
        assert note in found.notes
        (lists / f'{name}.txt').unlink()
    (lists / 'train.txt').unlink()
    (lists / 'val.txt').write_text(names[4])
    assert counts(recognise(tmp_path, 'boxes')) == {'val': 1, 'all': 4}
    (lists / 'trainval.txt').unlink()
    assert counts(recognise(tmp_path, 'boxes')) == {'val': 1, 'all': 5}  # all others
    write_voc(tmp_path / 'VOC2007', scenes(1), 'JPEGImages/more', 'Annotations/more')
    assert counts(recognise(tmp_path, 'boxes')) == {'val': 1, 'all': 6}
    (lists / 'val.txt').write_text(names[0])
    with pytest.raises(DataError, match=f'its lists name {names[0]}, which is .* and .*; rename'):
        recognise(tmp_path, 'boxes')
    (lists / 'val.txt').write_text('größe', encoding='latin-1')
    with pytest.raises(DataError, match='val.txt: it is no text in UTF-8'):
        recognise(tmp_path, 'boxes')


def test_masks_with_lists(tmp_path):
    write_images(tmp_path / 'JPEGImages', scenes(5))
    write_masks(tmp_path / 'SegmentationClass', scenes(5))
    lists = tmp_path / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('\n'.join(list(scenes(5))[:3]))
    (lists / 'val.txt').write_text('\n'.join(list(scenes(5))[3:]))
    assert counts(recognise(tmp_path, 'maps')) == {'train': 3, 'val': 2}


def test_words_in_the_names_of_folders(tmp_path):
    names = 'train_v2 train_val scene_train dev-kit val_labels_txt test-dev dev_images'.split()
    for name in names:
        write_voc(tmp_path / name, scenes(1), '', '')
    assert counts(recognise(tmp_path, 'boxes')) == {'all': 1, 'val': 2, 'train': 3, 'test': 1}


def test_images_and_xml_side_by_side(tmp_path):
    for split, count in SPLITS.items():
        write_voc(tmp_path / split, scenes(count, count), '', '')
    assert counts(recognise(tmp_path, 'boxes')) == {'train': 10, 'val': 4, 'test': 3}


def test_what_has_no_partner_is_noted(tmp_path):
    write_voc(tmp_path, scenes(4))
    (tmp_path / 'images/photo_000.jpg').unlink()
    (tmp_path / 'annotations/photo_001.xml').unlink()
    found = recognise(tmp_path, 'boxes')
    assert counts(found) == {'all': 2}
    assert [note.split(' in ')[0] for note in found.notes] == [
        '1 annotation files without image',
        '1 images without annotation file',
    ]


def test_equal_names_in_other_folders_are_other_images(tmp_path):
    """Folders tell images of one name apart, here behind a link; their roles may have any name."""
    for part in ('north', 'south'):
        write_voc(tmp_path / 'set', scenes(3), f'imgs/{part}', f'xmls/{part}')
    (tmp_path / 'set/imgs').rename(tmp_path / 'elsewhere')
    (tmp_path / 'set/imgs').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere/north/photo_000.jpg').unlink()
    found = recognise(tmp_path / 'set', 'boxes')
    assert counts(found) == {'all': 5} and '1 annotation files without image' in found.notes[0]
    assert all(image.parent.name == file.parent.name for image, file in found.splits['all'])


def test_yolo_as_roboflow_writes_it(tmp_path):
    write_roboflow_yolo(tmp_path)
    for path in (tmp_path, tmp_path / 'data.yaml'):
        found = recognise(path, 'boxes')
        assert (found.format, found.classes) == ('yolo', CLASSES)
        assert counts(found) == {'train': 10, 'val': 4, 'test': 3}
        for pairs in found.splits.values():
            assert all(file.is_file() and file.stem == image.stem for image, file in pairs)


@pytest.mark.parametrize('listed', [False, True])
def test_yolo_as_ultralytics_writes_it(tmp_path, listed):
    root = tmp_path / 'signs'
    for split in ('train', 'val'):
        write_yolo(root / f'images/{split}', root / f'labels/{split}', scenes(5, len(split)))
    (root / 'labels/train' / f'{next(iter(scenes(5, 5)))}.txt').unlink()  # nothing is on it
    content = dict(path='signs', train='images/train', val='images/val', test='images/test',
                   names=dict(enumerate(CLASSES)))  # fmt: skip
    if listed:
        lines = [f'./images/train/{name}.jpg\n' for name in scenes(5, 5)]
        (root / 'train.txt').write_text(''.join(lines))
        content['train'] = 'train.txt'
    (tmp_path / 'signs.yaml').write_text(yaml.safe_dump(content))
    found = recognise(tmp_path / 'signs.yaml', 'boxes')
    assert (counts(found), found.classes) == ({'train': 5, 'val': 5}, CLASSES)
    assert sum(file.is_file() for _, file in found.splits['train']) == 4
    name = next(iter(scenes(5, 5)))
    missing = f'1 images without label file count as images without objects: {name}'
    assert found.notes == ['test: images/test does not exist', missing]
    (tmp_path / 'signs.yaml').write_text(yaml.safe_dump(dict(content, val='images/gone')))
    with pytest.raises(DataError, match='val: images/gone does not exist'):
        recognise(tmp_path / 'signs.yaml', 'boxes')


def test_yolo_in_capitals_behind_a_link_and_beside_other_yaml(tmp_path):
    """The labels are beside the link, not beside what it links to."""
    write_yolo(tmp_path / 'v1/Images', tmp_path / 'v1/Labels', scenes(4))
    (tmp_path / 'v2').mkdir()
    (tmp_path / 'v2/Images').symlink_to(tmp_path / 'v1/Images')
    write_yolo(tmp_path / 'other', tmp_path / 'v2/Labels', scenes(4))
    (tmp_path / 'v2/Labels/gone.txt').write_text('')
    for folder in ('v1', 'v2'):
        content = dict(train='Images', validation='Images', names=['cat', 'dog'])
        (tmp_path / folder / 'data.yaml').write_text(yaml.safe_dump(content))
        (tmp_path / folder / 'mkdocs.yml').write_text('theme: !ENV x')
        found = recognise(tmp_path / folder, 'boxes')
        assert counts(found) == {'train': 4, 'val': 4}
        assert found.notes == ['1 label files without image in a split: gone.txt'] * (
            folder == 'v2'
        )
        for image, file in found.splits['train']:
            assert file == tmp_path / folder / f'Labels/{image.stem}.txt' and file.is_file()
    (tmp_path / 'v3').mkdir()
    (tmp_path / 'v3/Images').symlink_to(tmp_path / 'v1/Images')  # without labels of its own
    (tmp_path / 'v3/data.yaml').write_text(yaml.safe_dump(content))
    pairs = recognise(tmp_path / 'v3', 'boxes').splits['train']
    assert all(file.parent == tmp_path / 'v1/Labels' and file.is_file() for _, file in pairs)
    write_yolo(tmp_path / 'Images/ds/train', tmp_path / 'Images/ds/train', scenes(3))
    (tmp_path / 'Images/ds/data.yaml').write_text('train: train\nval: train\nnames: [cat, dog]')
    pairs = recognise(tmp_path / 'Images/ds', 'boxes').splits['train']
    assert all(file == image.with_suffix('.txt') for image, file in pairs) and len(pairs) == 3
    for file in (tmp_path / 'Images/ds/train').glob('*.txt'):
        file.unlink()
    with pytest.raises(DataError, match='none of its 3 images has a label file'):
        recognise(tmp_path / 'Images/ds', 'boxes')
    for value in (5, ['Images', 3]):
        (tmp_path / 'v1/data.yaml').write_text(yaml.safe_dump(dict(content, train=value)))
        with pytest.raises(DataError, match='train: .* is no path'):
            recognise(tmp_path / 'v1', 'boxes')


def test_labelme(tmp_path):
    write_labelme(tmp_path, scenes(7))
    write_images(tmp_path, {'not_annotated': []})
    found = recognise(tmp_path, 'boxes')
    assert (found.format, counts(found)) == ('labelme', {'all': 7})
    assert 'not_annotated.jpg' in found.notes[0]
    for file in tmp_path.glob('*.json'):  # as programs on Windows write
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert counts(recognise(tmp_path, 'boxes')) == {'all': 7}


@pytest.mark.parametrize(
    ('images', 'file'),
    [
        ('{}2017', 'annotations/instances_{}2017.json'),
        ('images/{}', 'annotations/{}.json'),
        ('{}', '{}/_annotations.coco.json'),
        ('images', '{}.json'),
        ('JPEGImages', 'annotations/{}_coco.json'),
    ],
)
def test_coco_in_the_usual_places(tmp_path, images, file):
    for split, name in {'train': 'train', 'val': 'valid'}.items():
        name = split if '2017' in images else name
        write_coco(
            tmp_path / images.format(name), tmp_path / file.format(name), scenes(3, len(name))
        )
    (tmp_path / 'captions_train.json').write_text('{"images": [], "annotations": [{"caption": 1}]}')
    found = recognise(tmp_path, 'boxes')
    assert (found.format, set(found.splits)) == ('coco', {'train', 'val'})
    for split, name in {'train': 'train', 'val': 'valid'}.items():
        name = split if '2017' in images else name
        assert found.splits[split] == [
            (tmp_path / images.format(name), tmp_path / file.format(name))
        ]


def test_coco_files_that_cannot_be_told_apart(tmp_path):
    for name in ('first_train', 'second_train'):
        write_coco(tmp_path / 'images', tmp_path / f'annotations/{name}.json', scenes(2))
    with pytest.raises(
        DataError, match='2 COCO files for train.*name one for each split in a yaml'
    ):
        recognise(tmp_path, 'boxes')


def test_coco_images_that_are_there_twice(tmp_path):
    file = tmp_path / 'annotations.json'
    for name in ('annotated', 'images'):
        write_coco(tmp_path / name, file, scenes(2))
    assert recognise(tmp_path, 'boxes').splits == {'all': [(tmp_path / 'images', file)]}
    for name in ('old_train', 'train'):
        write_coco(tmp_path / name, tmp_path / 'train.json', scenes(3, 1))
    file.unlink()
    found = recognise(tmp_path, 'boxes')
    assert found.splits == {'train': [(tmp_path / 'train', tmp_path / 'train.json')]}
    (tmp_path / 'train').rename(tmp_path / 'new_train')
    assert recognise(tmp_path, 'boxes').splits['train'][0][0] == tmp_path / 'new_train'
    write_images(tmp_path / 'old_train', dict.fromkeys(scenes(3, 1), []))  # other pictures
    with pytest.raises(DataError, match='its images are in .*new_train and in .*old_train'):
        recognise(tmp_path, 'boxes')


def test_keys_of_a_json_may_be_in_its_middle(tmp_path):
    write_coco(tmp_path, tmp_path / 'x.json', scenes(3))
    content = json.loads((tmp_path / 'x.json').read_text())
    padding = [dict(content['images'][0], id=1000 + i) for i in range(3000)]
    content = dict(images=content.pop('images') + padding, **content, info='x' * 100_000)
    content['categories'][0]['name'] = 'caption'
    (tmp_path / 'x.json').write_text(json.dumps(content))
    assert recognise(tmp_path, 'boxes').format == 'coco'


def test_coco_without_its_images(tmp_path):
    write_coco(tmp_path / 'images', tmp_path / 'annotations/train.json', scenes(2))
    for image in (tmp_path / 'images').iterdir():
        image.unlink()
    with pytest.raises(
        DataError, match=r'none of its images is found \(the first is photo_000.jpg'
    ):
        recognise(tmp_path, 'boxes')


@pytest.mark.parametrize(
    ('images', 'masks', 'ending'),
    [
        ('img_dir/{}', 'ann_dir/{}', '.png'),
        ('{}/images', '{}/masks', '_mask.png'),
        ('{}', 'semseg/{}', '.png'),
        ('images/{}', 'labels/{}', '_L.png'),
        ('{}', '{}', '_mask.png'),
    ],
)
def test_masks(tmp_path, images, masks, ending):
    for split in ('train', 'val'):
        write_images(tmp_path / images.format(split), scenes(4, len(split)))
        write_masks(tmp_path / masks.format(split), scenes(4, len(split)), ending)
    (tmp_path / 'classes.txt').write_text('background\ncat\ndog\n')
    found = recognise(tmp_path, 'maps')
    assert (counts(found), found.notes) == ({'train': 4, 'val': 4}, [])
    assert found.classes == ('background', *CLASSES)
    for split in ('train', 'val'):
        for image, mask in found.splits[split]:
            assert mask == tmp_path / masks.format(split) / f'{image.stem}{ending}'
            assert image.parent == tmp_path / images.format(split)


def test_images_and_masks_are_no_classes(tmp_path):
    write_images(tmp_path / 'images', scenes(3))
    write_masks(tmp_path / 'masks', scenes(3))
    for task in ('classes', 'boxes'):
        with pytest.raises(DataError, match='it holds images and masks, which this model'):
            recognise(tmp_path, task)
    for name in ('mask', 'no_mask'):
        write_images(tmp_path / 'faces' / name, {'x': []})
    assert recognise(tmp_path / 'faces', 'classes').classes == ('mask', 'no_mask')
    write_images(tmp_path / 'faces/images', {'x': []})
    write_images(tmp_path / 'faces/none', {'x': []})
    found = recognise(tmp_path / 'faces', 'classes')
    assert found.classes == ('no_mask', 'none')
    assert found.notes == ['not used as classes: images, mask']


def test_an_image_that_is_named_like_a_mask(tmp_path):
    write_images(tmp_path, {'a': [], '_mask': []})
    for task in ('maps', 'boxes'):
        with pytest.raises(DataError, match='holds no'):
            recognise(tmp_path, task)


def test_class_folders(tmp_path):
    for name, count in {'cat': 3, 'dog': 2}.items():
        write_images(tmp_path / 'one' / name, {f'{name}{i}': [] for i in range(count)})
        for split in ('train', 'val'):
            write_images(tmp_path / 'two' / split / name, {f'{split}{i}': [] for i in range(count)})
    (tmp_path / 'one' / 'cat' / 'phone.HEIC').touch()
    found = recognise(tmp_path / 'one', 'classes')
    assert counts(found) == {'all': 5}
    assert found.notes == ['not used: phone.HEIC; save them as .jpg']
    found = recognise(tmp_path / 'two', 'classes')
    assert (counts(found), found.classes) == ({'train': 5, 'val': 5}, CLASSES)


def test_class_folders_of_odd_splits(tmp_path):
    for split in ('train', 'test'):  # as Kaggle packs them
        for name in CLASSES:
            write_images(tmp_path / f'a/seg_{split}/seg_{split}' / name, {f'{split}{name}': []})
    write_images(tmp_path / 'a/seg_pred/seg_pred', {'x': []})
    found = recognise(tmp_path / 'a', 'classes')
    assert (counts(found), found.classes) == ({'train': 2, 'test': 2}, CLASSES)
    write_images(tmp_path / 'a/seg_test/seg_test/unknown', {'x': []})
    found = recognise(tmp_path / 'a', 'classes')
    assert (counts(found), found.classes) == ({'train': 2, 'test': 2}, CLASSES)
    assert found.notes == ['test: unknown is no class of train: not used']
    write_images(tmp_path / 'a/val/Cat', {'y': []})
    with pytest.raises(DataError, match='for validation are not all for training: Cat'):
        recognise(tmp_path / 'a', 'classes')
    with pytest.raises(
        DataError, match='in the format of COCO json or'
    ):  # which no detector asks for
        recognise(tmp_path / 'a', 'boxes')
    write_images(tmp_path / 'b/cat', {'x': []})
    write_images(tmp_path / 'b/cat/more', {'y': []})
    write_images(tmp_path / 'b/dog', {'z': []})
    assert counts(recognise(tmp_path / 'b', 'classes')) == {'all': 3}


def test_a_folder_that_could_be_two_things(tmp_path):
    write_voc(tmp_path, scenes(3))
    write_coco(tmp_path / 'images', tmp_path / 'annotations/all.json', scenes(3))
    with pytest.raises(DataError, match='holds COCO json and Pascal VOC; say which: --data-format'):
        recognise(tmp_path, 'boxes')
    assert recognise(tmp_path, 'boxes', 'voc').format == 'voc'


def test_the_annotations_nearest_to_the_folder_count(shapes):
    assert recognise(shapes, 'boxes').format == 'coco'  # shapes/voc has the same scenes
    assert counts(recognise(shapes / 'voc', 'boxes')) == {'train': 16, 'val': 12}
    assert counts(recognise(shapes, 'maps')) == {'train': 16, 'val': 12}


def test_data_of_another_task(tmp_path):
    write_voc(tmp_path, scenes(3))
    with pytest.raises(DataError, match='it holds Pascal VOC, which this model does not train on'):
        recognise(tmp_path, 'maps')
    with pytest.raises(DataError, match='COCO json or Pascal VOC.*write a yaml with format'):
        recognise(tmp_path / 'images', 'boxes')
    with pytest.raises(DataError, match='there is no such folder'):
        recognise(tmp_path / 'nowhere', 'boxes')


def test_a_yaml_that_names_the_parts(tmp_path):
    write_voc(tmp_path, scenes(4), 'pics/a', 'notes/a')
    write_voc(tmp_path, scenes(2, 1), 'pics/b', 'notes/b')
    content = dict(
        format='voc',
        classes=['dog', 'cat'],
        train=dict(images='pics/a', annotations='notes/a'),
        val=dict(images='pics/b', annotations='notes/b'),
    )
    file = tmp_path / 'mine.yaml'
    file.write_text(yaml.safe_dump(content))
    found = recognise(file, 'boxes')
    assert (counts(found), found.classes) == ({'train': 4, 'val': 2}, ('dog', 'cat'))
    content['valid'] = dict(images='notes/../pics/b', annotations='notes/b')
    file.write_text(yaml.safe_dump({key: content[key] for key in content if key != 'val'}))
    assert recognise(file, 'boxes').splits == found.splits
    for wrong, words in (
        (dict(format='vox'), "format: 'vox' is unknown"),
        (dict(train='pics/a'), 'train needs images and annotations'),
        (dict(val=dict(images='pics/c', annotations='notes/b')), 'val: there is no .*pics/c'),
        (dict(classes='cell'), "classes: 'cell' is no list"),
        (dict(format='coco', val=dict(images='pics/b', annotations='notes/b')), 'is no file'),
    ):
        file.write_text(yaml.safe_dump(content | wrong))
        with pytest.raises(DataError, match=words):
            recognise(file, 'boxes')


def test_masks_are_not_taken_for_images(tmp_path):
    """The layout of VOC 2012, whose masks have the names of the images."""
    write_voc(tmp_path, scenes(3), 'JPEGImages', 'Annotations')
    write_masks(tmp_path / 'SegmentationClass', scenes(2))
    found = recognise(tmp_path, 'boxes')
    assert {image.parent.name for image, _ in found.splits['all']} == {'JPEGImages'}
    assert (counts(found), counts(recognise(tmp_path, 'maps'))) == ({'all': 3}, {'all': 2})


def test_an_annotation_with_two_images(tmp_path):
    write_voc(tmp_path, scenes(2))
    write_images(tmp_path / 'images/pictures', scenes(1))
    with pytest.raises(DataError, match=r'photo_000.xml may belong to two images'):
        recognise(tmp_path, 'boxes')


def test_a_further_folder_of_annotations_is_noted(tmp_path):
    write_images(tmp_path / 'images', scenes(3))
    write_masks(tmp_path / 'masks', scenes(3))
    write_masks(tmp_path / 'masks/colour', scenes(3))
    found = recognise(tmp_path, 'maps')
    assert {mask.parent.name for _, mask in found.splits['all']} == {'masks'}
    assert [note.split(' in ')[0] for note in found.notes] == ['3 annotation files without image']


def test_a_link_that_goes_round(tmp_path):
    write_voc(tmp_path, scenes(3))
    (tmp_path / 'latest').symlink_to(tmp_path)
    assert counts(recognise(tmp_path, 'boxes')) == {'all': 3}


def test_coco_images_beside_the_json_come_first(tmp_path):
    write_coco(tmp_path / 'set', tmp_path / 'set/labels.json', scenes(3))
    write_images(tmp_path / 'a', scenes(3))
    assert recognise(tmp_path, 'boxes').splits['all'][0][0] == tmp_path / 'set'


def test_splits_are_no_classes(tmp_path):
    for folder in ('cat', 'dog', 'train'):
        write_images(tmp_path / folder, scenes(2))
    assert recognise(tmp_path, 'classes').classes == ('cat', 'dog')


def test_images_without_objects_in_a_folder_of_their_own(tmp_path):
    write_yolo(tmp_path / 'images/train', tmp_path / 'labels/train', scenes(3))
    write_images(tmp_path / 'images/train/background', {'empty': []})
    assert counts(recognise(tmp_path, 'boxes')) == {'train': 4}
