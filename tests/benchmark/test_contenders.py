"""Which contenders there are, and what they run on."""

import pytest
import torchvision

from res2net_mm.benchmark import peers, processes
from res2net_mm.ops.mmcv_ext import kernels
from res2net_mm.ops.mmcv_ext.roi_align import torchvisions_gradient


def test_names_that_differ_by_kept_memory_alone(monkeypatch):
    names = ['mmdet', 'mmdet kept memory', 'ours fast']
    for can, device, expected in (
        (1, 'cpu', names),
        (0, 'cpu', names[::2]),
        (1, 'cuda', names[::2]),
    ):
        monkeypatch.setattr(processes, 'can_keep_memory', lambda can=can: can)
        assert processes.without_kept(names, device) == expected


def test_yardsticks_run_on_torchvisions_kernels():
    own = kernels.roi_align, kernels.roi_align_gradient
    with pytest.raises(KeyError), peers.torchvision_kernels():
        assert kernels.roi_align is torchvision.ops.roi_align
        assert kernels.roi_align_gradient is torchvisions_gradient
        raise KeyError
    assert (kernels.roi_align, kernels.roi_align_gradient) == own
