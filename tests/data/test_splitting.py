"""Images that are set aside share nothing with those that are trained on."""

import pytest

from res2net_mm.data.errors import DataError
from res2net_mm.data.splitting import set_aside


def files(folder, contents):
    for name, content in contents.items():
        (folder / name).write_text(content)
    return [folder / name for name in contents]


def test_share_and_seed(tmp_path):
    images = files(tmp_path, {f'{i:03}.jpg': str(i) for i in range(100)})
    chosen = set_aside(images, seed=1)
    assert len(chosen) == 20 and chosen == set_aside(images, seed=1) != set_aside(images, seed=2)


COPIES = [
    ('a.jpg', 'a.png'),
    ('a_jpg.rf.0f3c9a.jpg', 'a_jpg.rf.77aa01.jpg'),
    ('a.jpg', 'a (1).jpg'),
    ('a.jpg', 'a_copy.jpg'),
    ('a.jpg', 'A_flip.JPG'),
    ('a.jpg', 'a_rot90_copy2.png'),
]


@pytest.mark.parametrize('pair', COPIES)
def test_copies_stay_together(tmp_path, pair):
    contents = {name: f'copy {i}' for i, name in enumerate(pair)}
    images = files(tmp_path, contents | {f'other{i}.jpg': str(i) for i in range(8)})
    for seed in range(20):
        chosen = {image.name for image in set_aside(images, seed=seed)}
        assert len(chosen & set(pair)) in (0, 2)


def test_equal_images_stay_together(tmp_path):
    """Also through a third: a equals b, and b differs from c only in its suffix."""
    images = files(
        tmp_path,
        {'a.jpg': '1', 'b.jpg': '1', 'b.png': '2'} | {f'x{i}.jpg': f'x{i}' for i in range(9)},
    )
    for seed in range(20):
        chosen = {image.name for image in set_aside(images, 0.3, seed)}
        assert len(chosen & {'a.jpg', 'b.jpg', 'b.png'}) in (0, 3)


def test_numbers_of_frames_are_no_copies(tmp_path):
    images = files(tmp_path, {f'frame_{i}.jpg': str(i) for i in range(10)})
    assert len(set_aside(images)) == 2


@pytest.mark.parametrize(
    'names',
    [
        [f'{kind} ({i}).jpg' for kind in ('cat', 'dog') for i in range(1, 11)],  # Windows' renaming
        [f'2023_aug_{i:02}.jpg' for i in range(1, 21)],
        [f'apple_rot_{i:03}.jpg' for i in range(1, 21)],
    ],
)
def test_a_series_is_not_of_one_image(tmp_path, names):
    images = files(tmp_path, {name: name for name in names})
    assert len(set_aside(images)) == 4
    kinds = {image.name[:3] for seed in range(5) for image in set_aside(images, seed=seed)}
    assert kinds == {name[:3] for name in names}


def test_changed_images_whose_original_is_gone(tmp_path):
    names = [
        f'{name}_aug{mark}_{i}.jpg'
        for name in 'abcdefghij'
        for mark in ('', 'mentation')
        for i in (1, 2, 3)
    ]
    chosen = {image.name for image in set_aside(files(tmp_path, {n: n for n in names}))}
    assert len(chosen) == 12 and len({name[0] for name in chosen}) == 2


def test_copies_of_one_image(tmp_path):
    with pytest.raises(DataError, match='3 images are one image or its copies'):
        set_aside(files(tmp_path, {'a.jpg': '1', 'a.png': '2', 'b.jpg': '1'}))
