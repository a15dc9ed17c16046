"""What the metrics share."""

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
