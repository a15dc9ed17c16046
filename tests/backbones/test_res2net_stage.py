"""A single stage is the stage of the whole network."""

import pytest
import torch
from references import randomise
from torch.nn.modules.batchnorm import _BatchNorm

import res2net_mm
from res2net_mm.backbones import Res2NetStage

SMALL = dict(depth=14, base_channels=16)


@pytest.fixture
def whole():
    return randomise(res2net_mm.Res2Net(**SMALL)).eval()


@pytest.mark.parametrize(('stage', 'channels'), [(0, 16), (2, 128), (3, 256)])
def test_is_the_stage_of_the_network_whose_weights_it_loads(whole, tmp_path, stage, channels):
    torch.save(whole.state_dict(), tmp_path / 'whole.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'))
    part = Res2NetStage(stage=stage, init_cfg=init_cfg, **SMALL)
    part.init_weights()
    name = f'layer{stage + 1}'
    expected = whole.get_submodule(name)
    assert set(part.state_dict()) == {f'{name}.{key}' for key in expected.state_dict()}
    x = torch.rand(3, channels, 14, 14)
    assert torch.equal(part.eval()(x), expected(x))


def test_weights_of_another_network_are_refused(whole, tmp_path):
    torch.save(whole.state_dict(), tmp_path / 'whole.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'))
    with pytest.raises(ValueError, match="first_block='official'"):
        Res2NetStage(init_cfg=init_cfg, first_block='mmdet', **SMALL).init_weights()
    with pytest.raises(ValueError, match='Set depth=14'):
        Res2NetStage(init_cfg=init_cfg, depth=26, base_channels=16).init_weights()


def test_modes_and_start():
    part = Res2NetStage(**SMALL)
    part.init_weights()
    assert all((block.bn3.weight == 0).all() for block in part.layer4)  # starts as the identity
    norms = [m for m in part.modules() if isinstance(m, _BatchNorm)]
    assert part.train() is part and part.training and not any(m.training for m in norms)
    assert all(m.training for m in Res2NetStage(norm_eval=False, **SMALL).train().layer4[0].bns)


@pytest.mark.parametrize(
    ('arguments', 'error', 'text'),
    [
        (dict(stage=4), ValueError, 'stage must be one of 0, 1, 2, 3, but got 4'),
        (dict(scale=4), TypeError, 'scale'),
        (dict(depth=51), ValueError, 'depth'),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        Res2NetStage(**arguments)


def test_weights_of_another_rule_are_refused():
    state = Res2NetStage(stage=3, depth=14, first_block='paddle').state_dict()
    Res2NetStage(stage=3, depth=14, first_block='paddle').load_state_dict(state)
    with pytest.raises(ValueError, match="needs first_block='paddle', but the network has"):
        Res2NetStage(stage=3, depth=14).load_state_dict(state)
    with pytest.raises(ValueError, match='stage must be one of 0, 1, 2, but got 3'):
        Res2NetStage(stage=3, depth=14, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
                     out_indices=(0,))  # fmt: skip
