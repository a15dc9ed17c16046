"""Class folders: their counts, and what would shift labels without a word."""

import shutil

import pytest
from classifiers import COLOURS, write_config, write_folders
from mmengine.config import Config

from res2net_mm.data.check.inspection import check_data, inspect_data
from res2net_mm.data.check.report import write_inspection
from res2net_mm.data.check.survey import format_summary
from res2net_mm.data.errors import DataError


@pytest.fixture
def data(tmp_path):
    return write_folders(tmp_path / 'colours', train=3, val=1)


@pytest.fixture
def config(data, tmp_path):
    return Config.fromfile(write_config(tmp_path, data))


def test_images_are_counted_by_class(config):
    train, val, test = check_data(config)
    assert train.images == 9 and train.classes == tuple(sorted(COLOURS))
    assert train.per_class == dict(blue=3, green=3, red=3)
    assert 'train: 9 images (blue 3, green 3, red 3)' in format_summary([train, val, test])


def test_a_class_that_one_split_lacks_would_shift_the_labels(config, data):
    shutil.rmtree(data / 'val/blue')
    with pytest.raises(DataError, match="val_dataloader.dataset.data_prefix: .*lacks 'blue'"):
        check_data(config)


def test_a_hidden_folder_counts_as_a_class(config, data):
    """As it does for mmpretrain."""
    (data / 'train/.ipynb_checkpoints').mkdir()
    with pytest.raises(DataError, match='ipynb_checkpoints'):
        check_data(config)


def test_names_in_another_order_than_the_folders(config):
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.metainfo = dict(classes=('red', 'green', 'blue'))
    with pytest.raises(DataError, match='numbered by the folders'):
        check_data(config)
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.metainfo = dict(classes=('Blue', 'Green', 'Red'))
    assert check_data(config)[0].per_class == dict(Blue=3, Green=3, Red=3)


def test_a_class_without_images_is_a_warning(config, data):
    shutil.rmtree(data / 'train/green')
    (data / 'train/green').mkdir()
    (data / 'train/green/notes.txt').touch()
    summary = check_data(config, splits=('train',))[0]
    assert summary.per_class['green'] == 0
    assert any('holds no image' in line for line in summary.warnings)


def test_no_folder_and_no_image(config, data):
    config.train_dataloader.dataset.data_prefix = 'trian'
    with pytest.raises(DataError, match="'trian' does not exist"):
        check_data(config)
    (data / 'flat').mkdir()
    shutil.copy(data / 'train/red/0.png', data / 'flat/0.png')
    config.train_dataloader.dataset.data_prefix = 'flat'
    with pytest.raises(DataError, match='data_prefix'):
        check_data(config)


def test_a_list_of_labels_is_checked(config, data):
    dataset, file = config.train_dataloader.dataset, data / 'list.txt'
    dataset.update(ann_file='list.txt', metainfo=dict(classes=('a', 'b', 'c')))
    file.write_text('blue/0.png 2\nred/0.png 0\nred/1.png 0\n')
    (summary,) = check_data(config, splits=('train',))
    assert (summary.images, summary.per_class) == (3, {'a': 2, 'b': 0, 'c': 1})
    for line in ('blue/0.png 3', 'blue/0.png', 'blue/0.png -1'):
        file.write_text(f'red/0.png 0\n{line}\n')
        with pytest.raises(DataError, match='line 2 is .* not a file and a number below 3'):
            check_data(config, splits=('train',))
    dataset.with_label = False
    assert check_data(config, splits=('train',))[0].unchecked == ['CustomDataset']


def test_the_full_check_looks_at_every_file(config, data, tmp_path):
    content = (data / 'val/red/0.png').read_bytes()
    (data / 'val/red/0.png').write_bytes(content[:200])
    shutil.copy(data / 'train/blue/0.png', data / 'val/green/0.png')
    inspection = inspect_data(config)
    kinds = {finding.kind for finding in inspection.findings}
    assert {'image unreadable', 'split overlap'} <= kinds
    files = write_inspection(inspection, tmp_path)
    assert all(file.stat().st_size for file in files)
