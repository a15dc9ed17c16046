"""The tables of the zoo, and the page that has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from running import loaded

from res2net_mm.engine import zoo_table
from res2net_mm.registry import config_folders
from res2net_mm.weights import ZOO

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    folder = config_folders()[0]
    monkeypatch.setattr(zoo_table, 'load_config', lambda name: loaded(folder / name))


def test_rows_of_the_page(monkeypatch):
    """A detector, a segmentor and a classifier; counting all takes a minute."""
    chosen = {'faster_rcnn_r2n101_2x', 'deeplabv3plus_r2n50_voc12aug', 'res2net50_v1b_in1k'}
    models = yaml.safe_load((config_folders()[0] / 'metafile.yml').read_text())['Models']
    models = [model for model in models if model['Name'] in chosen]
    monkeypatch.setattr(zoo_table.yaml, 'safe_load', lambda text: dict(Models=models))
    page = (REPO / 'docs/configs.md').read_text(encoding='utf-8').splitlines()
    rows = zoo_table.configs_table().splitlines()
    assert len(rows) == 2 + len(chosen) and set(rows) <= set(page)


@pytest.mark.slow
def test_the_page_has_what_the_command_prints():
    page = (REPO / 'docs/configs.md').read_text(encoding='utf-8')
    (shown,) = re.findall(r'<!-- zoo -->\n(.*)\n<!-- end of zoo -->', page, re.S)
    zoo = zoo_table.format_zoo()
    assert shown == zoo, 'put the output of python tools/describe.py --zoo between the marks'
    weights, counted, configs = zoo.split('\n\n')
    assert 'also count biases, ReLU and pooling' in counted
    assert len(weights.splitlines()) == 2 + len(ZOO)
    row = next(line for line in weights.splitlines() if 'res2net50_v1b_26w_4s`' in line)
    # test_zoo.py counts these figures by hand
    assert '| ImageNet top-1 80.27 | 25.72 | 4.522 | CC BY-NC-SA 4.0 (non-commercial) |' in row
    assert '`faster_rcnn_r2n101_2x` | box AP 42.3; box AP 43.0 | 61.42 |' in configs
