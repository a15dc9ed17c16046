"""Every config exports in both formats, or is refused by name: the table of docs/deploy.md."""

import json
import re
from pathlib import Path

import pytest
import torch
from exported import spread
from mmengine.registry import MODELS, init_default_scope
from running import loaded

from res2net_mm.deploy import ExportError, export
from res2net_mm.deploy.export import refusal

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPO / 'configs').glob('*.py'))
PAGE = (REPO / 'docs' / 'deploy.md').read_text()


def small(path):
    """The model of a config with few blocks; heads and operators are as they are."""
    cfg = loaded(path)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.backbone.pop('pretrained', None)
    if 'depth' in cfg.model.backbone:
        cfg.model.backbone.depth = 14 if 'Res2Net' in cfg.model.backbone.type else 50
    return cfg


def architectures():
    """A config of each architecture: backbones of other depths, schedules and data are the same."""
    found = {}
    for path in CONFIGS:
        text = json.dumps(small(path).model.to_dict(), sort_keys=True, default=str)
        text = re.sub(r'"(num_classes|num_things_classes|num_stuff_classes)": \d+', '', text)
        found.setdefault(text, path.stem)
    return list(found.values())


def test_every_config_is_in_the_table():
    """By its method: what none of the rows names cannot be exported."""
    rows = re.findall(r'^\| `(\w+)` \| ([^|]+) \|', PAGE, re.MULTILINE)
    methods = {name: reason.strip() for name, reason in rows}
    built = architectures()
    for path in CONFIGS:
        name = re.sub('^res2ne', 'classifier_res2ne', path.stem)
        row = next((m for m in methods if name.startswith(f'{m}_')), None)
        assert row is not None, path.stem
        if path.stem in built:
            with torch.device('meta'):
                refused = refusal(MODELS.build(small(path).model)) is not None
            assert methods[row] == ('refused' if refused else '.onnx, .xml'), path.stem


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
@pytest.mark.parametrize('name', architectures())
def test_config(name, suffix, tmp_path):
    cfg = small(REPO / 'configs' / f'{name}.py')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if reason := refusal(model):
        with pytest.raises(ExportError, match=re.escape(reason)):
            export(model, tmp_path / f'x{suffix}', (128, 192))
        return
    spread(model)
    if hasattr(model, 'roi_head') and 'Res2Net' not in cfg.model.backbone.type:
        # features of the others are larger, and would make every score 1: any 100 would be the best
        for level in model.neck.lateral_convs:
            level.conv.weight.data *= 0.1
    detects = cfg.get('default_scope', 'mmdet') == 'mmdet'
    report = export(model, tmp_path / f'x{suffix}', (128, 192) if detects else None)
    assert report.compared == 3 and report.errors
    assert 'score_thr' not in report.errors and (not detects or report.stray[1] > 0)
