"""What a transform of a dataset's pipeline raises names the image."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, Compose, ConcatDataset, RepeatDataset
from PIL import Image
from torch.utils.data import DataLoader

from res2net_mm.data.errors import DataError
from res2net_mm.data.naming import NamingCompose, name_failures
from res2net_mm.engine.errors import one_line
from res2net_mm.engine.seeding import SeededDataset

PIPELINE = [
    {'type': 'mmcv.LoadImageFromFile'},
    {'type': 'mmcv.Resize', 'scale': (32, 32), 'keep_ratio': True},
]


class Files(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [{'img_path': file} for file in self.metainfo['classes']]


@pytest.fixture
def files(tmp_path):
    for name, size in (('good.png', (40, 30)), ('thin.png', (2000, 3))):
        Image.new('RGB', size).save(tmp_path / name)
    return [str(tmp_path / name) for name in ('good.png', 'thin.png')]


def test_the_image_the_transform_and_the_reason_are_named(files):
    inner = [Files(metainfo={'classes': files}, pipeline=PIPELINE) for _ in range(2)]
    dataset = SeededDataset(ConcatDataset(inner))
    name_failures(dataset)
    repeated = RepeatDataset(Files(metainfo={'classes': files}, pipeline=PIPELINE), 2)
    name_failures(repeated)
    for part in (*inner, repeated.dataset):
        assert type(part.pipeline) is NamingCompose
    assert dataset[2]['img'].shape == (24, 32, 3)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=lambda batch: batch)
    with pytest.raises(DataError) as caught:
        list(loader)
    line = one_line(caught.value)
    assert f'image {files[1]} (2000 x 3 px): Resize fails with error: ' in line
    assert 'thin.png' in line and '\n' not in line


def test_what_runs_is_left_as_it_is(files):
    steps = Compose(PIPELINE).transforms
    for pipeline in (Compose(steps), NamingCompose(steps)):
        out = pipeline({'img_path': files[0]})
        assert out['img'].shape == (24, 32, 3)
    nothing = NamingCompose([lambda data: None, steps[0]])
    assert nothing({}) is None  # the dataset then draws another sample


@pytest.mark.parametrize('error', [DataError('said'), MemoryError(), KeyboardInterrupt()])
def test_errors_that_say_enough_pass(error):
    def fail(data: dict) -> dict:
        raise error

    with pytest.raises(type(error)) as caught:
        NamingCompose([fail])({'img_path': 'a.jpg'})
    assert caught.value is error


def test_a_label_map_that_does_not_load_is_named(tmp_path, files):
    pytest.importorskip('mmseg.registry')
    from mmseg.datasets.transforms import LoadAnnotations

    (tmp_path / 'map.png').write_bytes(b'no map')
    data = {'img_path': files[0], 'seg_map_path': str(tmp_path / 'map.png'), 'seg_fields': []}
    data |= {'img': np.zeros((30, 40, 3)), 'reduce_zero_label': False}
    with pytest.raises(DataError, match='label map .*map.png of image .*good.png'):
        NamingCompose([LoadAnnotations()])(data)
