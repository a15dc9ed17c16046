import pytest
from mmengine.config import Config

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


@pytest.mark.parametrize('name', ['faster_rcnn_r2n50', 'configs/faster_rcnn_r2n50.py'])
def test_names_without_a_suffix(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'faster_rcnn_r2n50').mkdir()  # a work dir is no config
    assert load_config(name).model.backbone.depth == 50


@pytest.mark.parametrize(
    'base', ['faster_rcnn_r2n50.py', 'faster_rcnn_r2n50', '_base_/segmentor.py']
)
def test_bases_by_the_name_of_the_package(tmp_path, base):
    """For mmengine's own reader too, and together with a base of another package."""
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = ['res2net_mm::{base}']\nmodel = dict(backbone=dict(depth=101))")
    for cfg in (load_config(path), Config.fromfile(path)):
        assert cfg.model.backbone.depth == 101 and cfg.model.backbone.type == 'res2net_mm.Res2Net'
    path.write_text("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'")
    assert load_config(path).train_cfg.max_epochs == 12
    path.write_text("_base_ = 'res2net_mm::faster_rcnn_r2n5.py'")
    with pytest.raises(ToolError, match='res2net_mm has no config faster_rcnn_r2n5.py'):
        load_config(path)


@pytest.mark.parametrize(
    'stack', [pytest.param('default', marks=pytest.mark.slow), 'originals'], indirect=True
)
def test_bases_on_both_stacks(tmp_path, stack, python):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'res2net_mm::faster_rcnn_r2n50.py'\n")
    code = (
        'import res2net_mm; from mmengine.config import Config; '
        f'print(Config.fromfile({str(path)!r}).model.backbone.type)'
    )
    done = python('-c', code, env=stack)
    assert done.stdout.strip() == 'res2net_mm.Res2Net', done.stderr[-2000:]
