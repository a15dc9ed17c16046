"""Names from files and texts of servers reach a terminal and a log without control characters."""

import io
import json
import logging
import runpy
import sys
from pathlib import Path

import pytest

from res2net_mm.engine.errors import ToolError, run_tool
from res2net_mm.engine.terminal import plain, plain_record

REPO = Path(__file__).resolve().parents[2]
EVIL = 'cat\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\u202etac'
SPELT = 'cat\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\x7f\\u202etac'


def test_control_characters_are_spelt_out():
    assert plain(EVIL) == SPELT
    assert plain('a\rb\r\nc\td') == 'a\\rb\r\nc\td'
    assert plain('\rbar 3%') == '\rbar 3%' and plain('größe 猫 🐈') == 'größe 猫 🐈'


@pytest.mark.parametrize('error', [None, ToolError, NotImplementedError, RuntimeError])
def test_what_a_tool_prints(capsys, error):
    def main():
        print(EVIL)
        print('\x1b[33mWARNING\x1b[0m', file=sys.stderr)
        sys.stderr.writelines([EVIL])
        if error:
            raise error(EVIL + ('out of memory' if error is RuntimeError else ''))

    with pytest.raises(SystemExit):
        run_tool(main)
    out, err = capsys.readouterr()
    assert out == f'{SPELT}\n'
    assert err.startswith(f'\x1b[33mWARNING\x1b[0m\n{SPELT}')
    assert err.count('\x1b') == 2 and err.count(SPELT) == (2 if error else 1)


def test_log_records():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(plain_record)
    logger = logging.Logger('terminal')
    logger.addHandler(handler)
    logger.warning('class %s', EVIL)
    assert stream.getvalue() == f'class {SPELT}\n'


def test_class_names_of_a_set(shapes, tmp_path, capsys, monkeypatch):
    """The names in a json, by check_data, which also says that they differ from the config's."""
    file = tmp_path / 'evil.json'
    content = json.loads((shapes / 'annotations/instances_train.json').read_text())
    content['categories'][0]['name'] = EVIL
    file.write_text(json.dumps(content))
    names = tuple(category['name'] for category in content['categories'])
    config = tmp_path / 'evil.py'
    tool = runpy.run_path(str(REPO / 'tools/check_data.py'))['main']
    for classes in (names, names[1:]):
        dataset = dict(data_root=f'{shapes}/', ann_file=str(file), metainfo=dict(classes=classes))
        config.write_text(
            f"_base_ = '{REPO}/configs/faster_rcnn_r2n14_shapes.py'\n"
            f'train_dataloader = dict(dataset={dataset!r})\n'
        )
        arguments = [str(config), '--splits', 'train', '--out', str(tmp_path / f'{len(classes)}')]
        monkeypatch.setattr(sys, 'argv', ['check_data.py', *arguments])
        with pytest.raises(SystemExit):
            run_tool(tool)
        out, err = capsys.readouterr()
        assert not {'\x1b', '\x9b', '\x07'} & {*out, *err} and 'owned' in out + err
