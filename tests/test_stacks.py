"""Both stacks, each in fresh processes."""

import importlib
import textwrap

import pytest
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


@pytest.mark.parametrize('first', ['mmdet.apis', 'mmseg.apis', 'mmseg.models'])
def test_import_after_what_holds_failing_stubs(first, python, stack):
    """Without compiled operators; on the originals the first import fails and is made good."""
    code = f"""
        import importlib
        try:
            importlib.import_module('{first}')
        except ModuleNotFoundError as error:
            print('failed:', error)
        import torch
        import res2net_mm
        from mmdet.models.layers import multiclass_nms
        boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
        scores = torch.tensor([[.9, .1], [.8, .2], [.7, .3]])
        dets, _ = multiclass_nms(boxes, scores, 0.05, dict(type='nms', iou_threshold=0.5), -1)
        print('kept', len(dets))
    """
    run = python('-c', textwrap.dedent(code), env=stack)
    assert run.returncode == 0 and 'kept 2' in run.stdout, run.stderr[-2000:]
