"""The table of published sets, and the tool."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from archive_sets import (
    COCO_ARCHIVES,
    COCO_NUMBERS,
    clean_environment,
    shrunk,
)
from weights.file_server import FileServer

from res2net_mm.data.prepare import sets as prepare
from res2net_mm.data.prepare.archives import COCO, DATA_SETS, DataSet


@pytest.fixture
def server(tmp_path, monkeypatch):
    clean_environment(monkeypatch)
    folder = tmp_path / 'served'
    folder.mkdir()
    with FileServer(folder) as running:
        yield running


@pytest.fixture
def coco(server) -> DataSet:
    return shrunk(COCO, server.folder, COCO_ARCHIVES, COCO_NUMBERS, server)


REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('dataset', DATA_SETS.values(), ids=str)
def test_the_table_holds_together(dataset):
    assert set(dataset.default) <= set(dataset.parts)
    names = [archive.name for part in dataset.parts.values() for archive in part.archives]
    assert len(names) == len(set(names))
    for part in dataset.parts.values():
        assert set(part.needs) <= set(dataset.parts)
        assert bool(part.made) == (part.finish in prepare._FINISHES)
        places = tuple(place for archive in part.archives for _, place in archive.moves)
        for count in part.counts:
            assert f'{count.folder}/{count.pattern}'.startswith(places), count
        for archive in part.archives:
            assert archive.url is None or archive.url.endswith(f'/{archive.name}')
            assert len(archive.md5 or 32 * 'a') == 32 and len(archive.sha256 or 64 * 'a') == 64
            assert 1e6 < archive.size < 2e10


def test_the_tool(coco, server, tmp_path, monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, 'argv', ['prepare_data.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPO / 'tools/prepare_data.py'), run_name='__main__')
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err.splitlines()

    status, out, _ = run('--help')
    assert status == 0
    assert 'python tools/prepare_data.py coco --root data' in out
    assert 'voc2007*, voc2012*, aug\n' in out

    assert run('coca', '--root', tmp_path) == (
        1,
        '',
        [
            "error: data set 'coca' is not known; did you mean coco?; "
            'there are coco, voc, ade20k, cityscapes'
        ],
    )
    monkeypatch.setitem(DATA_SETS, 'coco', coco)
    arguments = ('--root', tmp_path, '--from', server.folder, '--parts', 'val', 'panoptic')
    status, out, _ = run('coco', *arguments)
    assert status == 0
    assert re.fullmatch(r'\S+/coco/val2017/\*\.jpg +1  new', out.splitlines()[0])
    assert len(out.splitlines()) == 1 + 4 + 1
