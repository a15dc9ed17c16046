"""What the metrics share."""

import pytest

from res2net_mm.evaluation.images_run import ImagesRun


class Nothing:
    pass


class Metric(ImagesRun, Nothing):
    pass


def test_files_written_after_images_have_names_of_their_own():
    metric = Metric()
    paths = ['x.png', 'a/b/x.png', 'a_b/x.png', 'a/b_x.png', '/a/b/x.png']
    names = [metric.with_distinct_name(dict(img_path=path))['img_path'] for path in paths * 2]
    assert names[:5] == names[5:], 'an image that comes again keeps its name'
    assert len(set(names)) == 5 and names[0] == 'x.png'


@pytest.mark.parametrize(
    ('size', 'said'),
    [(4, ['2 of 4 images were run before']), (5, ['2 of 4 images were run', 'only 2 of the 5'])],
)
def test_a_repeated_data_set_is_run_as_a_whole(size, said, monkeypatch):
    messages = []
    monkeypatch.setattr('res2net_mm.evaluation.images_run.warn', messages.append)
    metric = Metric()
    metric._size = size
    assert metric.each_once([(i % 2, f'{i % 2}.png', i) for i in range(4)]) == [0, 1]
    assert len(messages) == len(said)
    assert all(part in message for part, message in zip(said, messages, strict=True))
