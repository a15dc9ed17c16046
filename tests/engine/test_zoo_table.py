"""The tables of the zoo, and the page that has them."""

from __future__ import annotations

import re
from pathlib import Path

from running import loaded

from res2net_mm.engine import zoo_table
from res2net_mm.registry import config_folders
from res2net_mm.weights import ZOO

REPO = Path(__file__).resolve().parents[2]


def test_the_page_has_what_the_command_prints(monkeypatch):
    folder = config_folders()[0]
    monkeypatch.setattr(zoo_table, 'load_config', lambda name: loaded(folder / name))  # once each
    page = (REPO / 'docs/configs.md').read_text(encoding='utf-8')
    (shown,) = re.findall(r'<!-- zoo -->\n(.*)\n<!-- end of zoo -->', page, re.S)
    zoo = zoo_table.format_zoo()
    assert shown == zoo, 'put the output of python tools/describe.py --zoo between the marks'
    weights, configs = zoo.split('\n\n')
    assert len(weights.splitlines()) == 2 + len(ZOO)
    row = next(line for line in weights.splitlines() if 'res2net50_v1b_26w_4s`' in line)
    # test_zoo.py counts these figures by hand
    assert '| ImageNet top-1 80.27 | 25.72 | 4.522 | CC BY-NC-SA 4.0 (non-commercial) |' in row
    assert '`faster_rcnn_r2n101_2x` | box AP 42.3; box AP 43.0 | 61.42 |' in configs
