import pytest

from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError, one_line


def test_wrong_name_gets_the_nearest(tmp_path):
    with pytest.raises(ToolError, match='fast_rcnn_r2n50.py does not exist; did you mean .*_r2n50'):
        load_config('configs/fast_rcnn_r2n50.py')
    mine = tmp_path / 'my_detector.py'
    mine.write_text('')
    with pytest.raises(ToolError, match=f'did you mean {mine}'):
        load_config(tmp_path / 'mydetector.py')
    (tmp_path / 'setup.py').write_text('')
    with pytest.raises(ToolError, match='nope.py does not exist$'):
        load_config(tmp_path / 'nope.py')


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('model = dict(\n', 'does not parse: line 1 SyntaxError'),
        ("_base_ = './nothing.py'", 'does not parse:.*nothing.py'),
        ('model = dict(depth=1 / 0)', 'does not parse: ZeroDivisionError'),
        ("custom_imports = dict(imports=['no_such_module'])", 'does not parse:.*no_such_module'),
    ],
)
def test_config_that_does_not_parse(tmp_path, text, words):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(ToolError, match=words) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and '\n' not in one_line(caught.value)


def test_options_that_do_not_fit(tmp_path):
    path = tmp_path / 'list.py'
    path.write_text('steps = [dict(a=1), dict(a=2)]')
    assert load_config(path, {'steps.1.a': 5}).steps == [dict(a=1), dict(a=5)]
    with pytest.raises(ToolError, match=f'--cfg-options .*steps.7.a.* do not fit config {path}'):
        load_config(path, {'steps.7.a': 5})


def test_packaged_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config('faster_rcnn_r2n50.py').model.backbone.depth == 50
