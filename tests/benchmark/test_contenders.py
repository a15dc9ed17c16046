"""Contenders: what their names say, which are chosen, and how results are compared."""

import sys

import pytest
import torch
import torchvision
from benchmark import contenders, networks
from benchmark.contenders import (
    DCN,
    INFERENCE,
    TRAINING,
    VARIANT,
    Contender,
    Work,
    choose,
    without_kept,
)

from res2net_mm.engine.errors import ToolError
from res2net_mm.ops import DeformConv2d
from res2net_mm.ops.internals import torchvisions_gradient
from res2net_mm.ops.mmcv_ext import roi


def test_names_describe_contenders():
    def shown(name):
        c = Contender(name)
        kind = str(c.dtype).removeprefix('torch.')
        return c.source, kind, c.fast, c.channels_last, c.keeps_memory, c.arguments

    yes, no = True, False
    assert shown('mmdet') == ('mmdet', 'float32', no, no, no, {})
    assert shown('mmdet bfloat16') == ('mmdet', 'bfloat16', no, no, no, {})
    assert shown('timm channels_last kept memory') == ('timm', 'float32', no, yes, yes, {})
    assert shown('resnet50') == ('resnet50', 'float32', no, yes, no, {})
    assert shown('torchvision fast') == ('torchvision', 'float32', yes, no, yes, {})
    assert shown('ours') == ('ours', 'float32', no, no, no, {})
    assert shown('ours fast float16') == ('ours', 'float16', yes, no, yes, {})
    trained = 'float32', no, yes, yes
    assert shown('ours channels_last') == ('ours', *trained, {})
    assert shown('ours compile') == ('ours', *trained, dict(compile=True))
    assert shown('ours with_cp') == ('ours', *trained, dict(with_cp=True))
    stages = (False, True, False, False)
    assert shown('ours with_cp C3') == ('ours', *trained, dict(with_cp=stages))
    assert [Contender(name).rule for name in ('mmdet', 'timm', 'resnet50')] == [
        *('mmdet', 'official', None)
    ]


def test_names_that_need_kept_memory(monkeypatch):
    names = ['mmdet', 'mmdet kept memory', 'ours fast']
    for can, device, expected in (
        (1, 'cpu', names),
        (0, 'cpu', names[::2]),
        (1, 'cuda', names[::2]),
    ):
        monkeypatch.setattr(contenders, 'can_keep_memory', lambda can=can: can)
        assert without_kept(names, device) == expected


def test_chosen_contenders():
    training, work = networks.CONTENDERS[TRAINING], Work(TRAINING, VARIANT)
    half = choose(training, work, 'cpu', dtypes=['bfloat16'])
    assert [*half] == ['ours bfloat16 channels_last', 'mmdet bfloat16']
    every = choose(training, work, 'cpu', dtypes=['float32', 'bfloat16'])
    assert {*training} - {*every} - {*without_kept(training, 'cpu')} == set()
    assert 'ours compile' not in every
    assert [*choose(training, work, 'cpu', ['ours compile', 'ours'])] == ['ours compile', 'ours']
    other = Work(INFERENCE, [*contenders.CHOICES][1])
    assert 'resnet50' not in choose(networks.CONTENDERS[INFERENCE], other, 'cpu')
    for name in ('someone', 'ours quick', ''):
        with pytest.raises(ToolError, match=f'but got {name!r}'):
            choose(training, work, 'cpu', [name])
    for name, lack in (('torchvision', VARIANT), ('ours fast', TRAINING)):
        with pytest.raises(ToolError, match=f'{name} is not for {lack}'):
            choose(training, work, 'cpu', [name])


def test_yardsticks_run_on_torchvisions_kernels():
    own = roi.roi_align, roi.roi_align_gradient
    with pytest.raises(KeyError), contenders.torchvision_kernels():
        assert roi.roi_align is torchvision.ops.roi_align
        assert roi.roi_align_gradient is torchvisions_gradient
        raise KeyError
    assert (roi.roi_align, roi.roi_align_gradient) == own


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ToolError, match='needs timm: pip install timm, or leave it out'):
        contenders.BUILDERS['timm'](VARIANT, {})


def test_difference_is_relative_to_the_largest_value():
    def difference(theirs, reference, bound=1e-4):
        theirs, reference = ([torch.tensor(x) for x in side] for side in (theirs, reference))
        return contenders.check_equal('a', theirs, 'b', reference, bound)

    assert difference([[2.0, -8.0], [2.5]], [[1.0, -8.0], [2.0]], 1) == 0.25
    for wrong in (float('nan'), float('inf')):
        for theirs in ([[wrong], [1.0]], [[1.0], [wrong]]):
            with pytest.raises(ToolError, match='a and b do not compute the same'):
                difference(theirs, [[1.0], [1.0]])
    with pytest.raises(ToolError, match='do not compute the same'):
        difference([[[1.0, 1.0]]], [[1.0, 1.0]])


def test_all_layers_are_exchanged():
    net = contenders.on_torchvision(contenders.ours(DCN))
    layers = [m for m in net.modules() if isinstance(m, DeformConv2d)]
    assert all(m._convolve.__func__ is contenders._by_torchvision for m in layers)
    assert all(m._convolve.__self__ is m for m in layers) and len(layers) == 39
