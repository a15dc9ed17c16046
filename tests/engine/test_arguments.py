"""The arguments that the tools share."""

import pytest

from res2net_mm.engine.arguments import add_shared, tool_parser


def test_an_option_without_a_value_is_a_usage_error(capsys):
    parser = tool_parser('Does.', 'example:')
    add_shared(parser, '--cfg-options')
    assert parser.parse_args(['--cfg-options', 'a=1', 'b=[1,2]']).cfg_options == dict(a=1, b=[1, 2])
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(['--cfg-options', 'a=1', 'b'])
    assert caught.value.code == 2
    assert "--cfg-options: must be KEY=VALUE, but got 'b'" in capsys.readouterr().err
