import math

import torch
from torch import nn

from res2net_mm.weights import constants, not_finite, say_not_finite


def test_tensors_with_nan_or_infinity_are_named():
    good = dict(a=torch.full((3,), 3e38), n=torch.tensor(7), empty=torch.zeros(0), text='nan')
    assert not_finite(good) == []
    bad = {
        'net.weight': torch.tensor([1.0, math.nan]),
        'half': torch.tensor([-math.inf], dtype=torch.float16),
        'state': {0: dict(step=torch.tensor(1.0), exp_avg=torch.tensor([math.inf]))},
        'groups': [dict(lr=math.inf), torch.tensor(math.nan, dtype=torch.bfloat16)],
        'eighth': torch.tensor([math.nan, 1.0]).to(torch.float8_e4m3fn),
        'meta': torch.empty(3, device='meta'),
        'sparse': torch.zeros(2, 2).to_sparse(),
        'lazy': nn.LazyLinear(2).weight,
    }
    expected = ['net.weight', 'half', 'state.0.exp_avg', 'groups.1', 'eighth']
    assert not_finite({**good, **bad}) == expected
    assert not_finite(bad, ['half', 'groups.1']) == ['net.weight', 'state.0.exp_avg', 'eighth']
    assert say_not_finite(['x']) == 'x has values that are NaN or infinite'


def test_constants_are_buffers_as_built():
    net = nn.BatchNorm1d(2)
    net.register_buffer('mask', torch.full((2, 2), -math.inf).triu(1))
    net.weight.data.fill_(math.nan)
    assert constants(net) == ['mask']
    net.running_var.fill_(math.inf)
    assert set(not_finite(net.state_dict(), ['mask'])) == {'weight', 'running_var'}
