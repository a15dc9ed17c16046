"""README, CHANGELOG and docs: links resolve, commands parse, examples run, names exist."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PAGES = [REPO / 'README.md', REPO / 'CHANGELOG.md', *sorted((REPO / 'docs').glob('*.md'))]
IDS = [page.name for page in PAGES]
FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.DOTALL | re.MULTILINE)


class Parsed(Exception):
    """A tool understood its arguments."""


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and content of every code block."""
    return FENCE.findall(text)


def commands(page: Path) -> list[str]:
    """Every call of a tool on a page, in code blocks and in inline code, without its comment."""
    text = page.read_text().replace('\\\n', ' ')
    lines = [line for language, code in blocks(text) if not language for line in code.splitlines()]
    inline = re.findall(r'`(python tools/[^`]+)`', FENCE.sub('', text))
    calls = [line.split('  #')[0] for line in [*lines, *(' '.join(i.split()) for i in inline)]]
    found = [re.sub(r'^torchrun --nproc_per_node \d+', 'python', call.strip()) for call in calls]
    # a tool that is named without arguments is not called
    return [call for call in found if re.match(r'python tools/\w+\.py .', call)]


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes from the headings of a page."""
    titles = re.findall(r'^#+ (.+)', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=IDS)
def test_links_resolve(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if target.startswith('http'):
            continue
        file, _, anchor = target.partition('#')
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked), target


@pytest.mark.parametrize('page', PAGES, ids=IDS)
def test_commands_parse(page, monkeypatch):
    real = argparse.ArgumentParser.parse_args

    def parse(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse)
    monkeypatch.syspath_prepend(REPO / 'tools')  # a tool imports its neighbours
    for command in commands(page):
        _, tool, *arguments = shlex.split(command)
        monkeypatch.setattr(sys, 'argv', [tool, *arguments])
        with pytest.raises(Parsed):
            try:
                runpy.run_path(str(REPO / tool))['main']()
            except SystemExit as error:
                pytest.fail(f'{command}: status {error.code}')


def test_the_front_door_has_commands():
    assert len(commands(REPO / 'README.md')) >= 6


@pytest.mark.parametrize('page', PAGES, ids=IDS)
def test_examples_run(page, tmp_path, monkeypatch):
    """Configs load and other Python runs; a block marked as needing weights only compiles."""
    from mmengine.config import Config

    monkeypatch.chdir(REPO)
    text = page.read_text()
    for match in FENCE.finditer(text):
        language, code = match.groups()
        if language != 'python':
            continue
        if '_base_' in code:
            Config.fromstring(code.replace("'configs/", f"'{REPO}/configs/"), '.py')
        elif text[: match.start()].rstrip().endswith('<!-- needs weights -->'):
            compile(code, page.name, 'exec')
        else:
            exec(compile(code, page.name, 'exec'), {})


@pytest.mark.parametrize('page', PAGES, ids=IDS)
def test_named_files_exist(page):
    text = page.read_text()
    names = re.findall(r'configs/(\w+\.(?:py|yml))', text)
    names += re.findall(r'`((?:mask_rcnn|sem_fpn|faster)\w*\.py)`', text)
    for name in names:
        assert (REPO / 'configs' / name).exists(), name
    paths = re.findall(r'`((?:res2net_mm|docs)/[\w/.]*)', text)
    for path in [*paths, *re.findall(r'(?<![\w/])tests/[\w/]+(?:\.py)?', text)]:
        assert (REPO / path).exists(), path
    for path in re.findall(
        r'`((?:backbones|weights|ops|data|evaluation|deploy|engine)/[\w/.]*)', text
    ):
        assert (REPO / 'res2net_mm' / path).exists(), path
    targets = re.findall(r'`make ([\w-]+)`|^make ([\w-]+) +#', text, re.MULTILINE)
    for target in filter(None, (name for pair in targets for name in pair)):
        assert re.search(rf'^{target}:', (REPO / 'Makefile').read_text(), re.MULTILINE), target


def test_the_front_door_is_short():
    assert len((REPO / 'README.md').read_text().splitlines()) <= 220
