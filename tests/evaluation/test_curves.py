"""Training curves."""

import json

import pytest

from res2net_mm.evaluation import (
    draw_curves,
)


def test_curves(tmp_path):
    scalars = tmp_path / 'scalars.json'
    lines = [dict(step=i, loss=1 / (i + 1), loss_cls=0.5, lr=0.1) for i in range(5)]
    lines.append({'coco/bbox_mAP': 0.4, 'step': 1})
    scalars.write_text('\n'.join(json.dumps(line) for line in lines))
    picture = draw_curves(scalars, tmp_path / 'loss.png')
    assert picture.read_bytes().startswith(b'\x89PNG') and picture.stat().st_size > 10_000
    scalars.write_text('{"lr": 0.1, "step": 1}')
    with pytest.raises(ValueError, match='scalars.json holds no loss'):
        draw_curves(scalars, tmp_path / 'none.png')
