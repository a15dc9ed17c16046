"""Runtimes side by side: all ways find the same before they are timed."""

from contextlib import contextmanager

import numpy as np
import pytest
from benchmark import deploy
from PIL import Image
from test_detectors import CONFIG

from res2net_mm.engine.errors import ToolError


class Here:
    """Stands in for a process."""

    def __init__(self, prepare, *args):
        prepare(*args)
        self.way = deploy._WAY.pop()

    def ask(self, function, *args):
        deploy._WAY[:] = [self.way]
        return function(*args)


@contextmanager
def own_process(name, prepare, *args):
    yield Here(prepare, *args)


def test_what_is_left_out_for_random_weights_is_there():
    assert callable(getattr(deploy.EXPORT, deploy.COMPARING))


@pytest.mark.slow
def test_all_ways(tool, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    (tmp_path / 'photos').mkdir()
    for i, size in enumerate([(120, 90), (90, 120), (128, 64)]):
        Image.fromarray(pixels).resize(size).save(tmp_path / 'photos' / f'{i}.png')
    (tmp_path / 'tiny.py').write_text(CONFIG)
    monkeypatch.setattr(deploy, 'own_process', own_process)
    monkeypatch.setattr(
        deploy, 'NETWORKS', dict(resnet50=('resnet50', deploy.VARIANT, deploy.FLOAT))
    )
    record = {}
    monkeypatch.setattr(deploy, 'make_record', lambda *args: record.update(rows=args[2]) or args)
    arguments = ['deploy', tmp_path / 'tiny.py', '--images', tmp_path / 'photos', '--size']
    args = tool._parser('deploy').parse_args([*map(str, arguments), '96x128', '--rounds', '1'])
    deploy.run(args)
    groups = {}
    for row in record['rows']:
        groups.setdefault(row['group'].rpartition(', ')[2], []).append(row)
    assert [*groups] == ['model', 'end to end', 'two streams', 'backbone']
    names = [row['name'] for row in groups['model']]
    assert names[:3] == ['mmdet', 'ours', 'ours folded'] and 'OpenVINO int8' in names
    assert all(row['times'][0] > 0 for row in record['rows'])
    assert all(row['difference'] <= deploy.BOUND for row in groups['model'] if row['difference'])


@pytest.mark.parametrize(
    'options, error',
    [
        (['--device', 'cuda'], 'on the CPU'),
        (['--figures'], '--checkpoint'),
        (['--size', '9'], '--size must be HxW'),
    ],
)
def test_refusals(tool, options, error, shapes):
    given = ['deploy', 'faster_rcnn_r2n14_shapes.py', '--images', str(shapes), *options]
    with pytest.raises(ToolError, match=error):
        deploy.run(tool._parser('deploy').parse_args(given))


def test_unequal_ways_are_refused():
    ours = np.array([0.1, 0.9])
    found = {deploy.OURS: ours, deploy.FLOAT: ours + 1e-5, deploy.INT8: ours + 0.1}
    assert deploy._differences(found)[deploy.FLOAT] == 0
    more = np.linspace(0.1, 0.9, 50)
    found_by_one = {deploy.OURS: more, deploy.FLOAT: more[1:]}
    assert deploy._differences(found_by_one)[deploy.FLOAT] == pytest.approx(1 / 50)
    for other in (ours + 0.01, ours[:1], ours * float('nan')):
        with pytest.raises(ToolError, match='OpenVINO'):
            deploy._differences({**found, deploy.FLOAT: other})
