"""Deformable convolution by itself: a record with every way at every level."""

import json

from benchmark import operators


def test_record_of_the_operator(here, tool, tmp_path, monkeypatch):
    monkeypatch.setattr(operators, 'SHAPES', {'C3': (4, 8), 'C5': (6, 4)})
    path = tmp_path / 'operator.json'
    tool.main(
        ['deform_conv', '--batch', '1', '--rounds', '1', '--channels-last', '--json', str(path)]
    )
    record = json.loads(path.read_text())
    groups = [f'{level} {name}' for level in ('C3', 'C5') for name in operators.PASSES]
    assert [row['group'] for row in record['rows']][::2] == groups
    assert [row['name'] for row in record['rows']] == ['torchvision', 'ours'] * 4
    for theirs, own in zip(record['rows'][::2], record['rows'][1::2], strict=True):
        assert 0 < theirs['difference'] < 1e-5 and own['difference'] == 0
    times = [row['times'][0] for row in record['rows'] if row['group'].endswith(' forward')]
    mean = (times[0] / times[1] * times[2] / times[3]) ** 0.5
    assert record['notes'][0] == f'forward: {mean:.2f} times as fast in the geometric mean'
