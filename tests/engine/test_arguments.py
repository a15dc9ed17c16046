import argparse

import pytest

from res2net_mm.engine.arguments import add_shared


@pytest.mark.parametrize('option', ['depth', 'strides=[(1,2],3)'])
def test_config_options_that_are_none(option, capsys):
    parser = argparse.ArgumentParser('tool')
    add_shared(parser, '--cfg-options')
    assert parser.parse_args(['--cfg-options', 'a.b=1', 'c=[2,3]']).cfg_options == {
        'a.b': 1,
        'c': [2, 3],
    }
    with pytest.raises(SystemExit) as end:
        parser.parse_args(['--cfg-options', 'a.b=1', option])
    assert end.value.code == 2
    assert 'argument --cfg-options: each must be KEY=VALUE' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--local-rank=1', '--local_rank=1'])
def test_what_torchs_older_launcher_adds(option):
    parser = argparse.ArgumentParser('tool')
    add_shared(parser, '--launcher')
    assert parser.parse_args([option, '--launcher', 'pytorch']).launcher == 'pytorch'
    assert 'local' not in parser.format_help()
