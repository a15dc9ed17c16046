"""The command `res2net TOOL ...`, which runs a file of tools/ by its name.

It is no module of the package: importing that loads torch, for which `res2net TOOL --help` would
have to wait.
"""

import ast
import difflib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

NOT_TOOLS = {'__init__', 'ctrl_c'}
SHORT = {'check': 'check_data', 'convert': 'convert_data'}


def main() -> None:
    """Runs the tool that the first argument names; without one, lists them."""
    package = Path(find_spec('res2net_mm').origin).parent
    folder = next(d for d in (package / '.mim/tools', package.parent / 'tools') if d.is_dir())
    tools = {file.stem: file for file in sorted(folder.glob('*.py')) if file.stem not in NOT_TOOLS}
    tools |= {name: tools[tool] for name, tool in SHORT.items()}
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print('usage: res2net TOOL ...\n')
        for tool, file in sorted(tools.items()):
            text = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))) or ''
            print(f'  {tool:16}{" ".join(text.split(chr(10) * 2)[0].split())}')
        print('\nres2net TOOL --help says more')
    elif name not in tools:
        near = difflib.get_close_matches(name, tools, 1, 0)
        sys.exit(f'error: there is no tool {name!r}; did you mean {near[0]}?')
    else:
        sys.argv = [str(tools[name]), *sys.argv[2:]]
        sys.path.insert(0, str(folder))
        runpy.run_path(str(tools[name]), run_name='__main__')


if __name__ == '__main__':
    main()
