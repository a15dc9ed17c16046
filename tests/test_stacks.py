"""Both stacks, each in a fresh process."""

import importlib

from running import ORIGINALS

import res2net_mm


def test_smoke(stack, python, shapes, tmp_path):
    run = python('tests/smoke_stack.py', shapes, tmp_path, env=stack)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'smoke: ok' in run.stdout
    versions = run.stdout.partition('versions: ')[2].split()
    original = str(ORIGINALS) in stack['PYTHONPATH']
    assert (versions[:4] == ['0.10.7', '2.1.0', '3.3.0', '1.2.2']) == original


def test_registering_twice_is_harmless():
    from mmdet.registry import MODELS

    module = importlib.import_module('res2net_mm.backbones.res2net')
    first = MODELS.get('res2net_mm.Res2Net')
    importlib.reload(module)
    try:
        assert MODELS.get('res2net_mm.Res2Net') is module.Res2Net is not first
    finally:
        res2net_mm.registry.MODELS.register_module(module=first, force=True)
        module.Res2Net = first
