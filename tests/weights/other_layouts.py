"""Writes weights in the names that other projects publish them in.

Each writer takes a state dict in this package's names. They are written from the descriptions of
the layouts, and share nothing with the code that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CLASSES = 10
# Trees of trees: the authors' code gives them a projection and then uses the inner tree's.
DISCARDING = {
    'level3': 'level3.tree1',
    'level4': 'level4.tree1.tree1',
    'level4.tree1': 'level4.tree1.tree1',
}
PROJECTION = ['0.weight', *(f'1.{leaf}' for leaf in ('weight', 'bias', 'running_mean'))]
PROJECTION += ['1.running_var', '1.num_batches_tracked']


def official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names, which timm has too, with the classifier."""
    stem = ['conv1.0', 'conv1.1', None, 'conv1.3', 'conv1.4', None, 'conv1.6', 'bn1']
    written = {}
    for key, value in state.items():
        first, _, rest = key.partition('.')
        if first == 'stem':
            number, leaf = rest.split('.')
            key = f'{stem[int(number)]}.{leaf}'
        written[key] = value
    channels = _channels(state)
    if 'base_layer.0.weight' not in state:
        return written | {
            'fc.weight': torch.ones(CLASSES, channels),
            'fc.bias': torch.ones(CLASSES),
        }
    for tree, inner in DISCARDING.items():
        for leaf in PROJECTION:
            written[f'{tree}.project.{leaf}'] = state[f'{inner}.project.{leaf}'] + 1
    written['fc.weight'] = torch.ones(CLASSES, channels, 1, 1)
    return written | {'fc.bias': torch.ones(CLASSES)}


def mmpretrain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier of mmpretrain."""
    written = {f'backbone.{key}': value for key, value in state.items()}
    written['head.fc.weight'] = torch.ones(CLASSES, _channels(state))
    return written | {'head.fc.bias': torch.ones(CLASSES)}


def detector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector of mmdet."""
    around = {'neck.lateral_convs.0.conv.weight': torch.ones(8, 8, 1, 1)}
    around['rpn_head.rpn_conv.bias'] = torch.ones(8)
    return {f'backbone.{key}': value for key, value in state.items()} | around


def paddle(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """PaddleClas's names, tensors for its arrays; batch norm does not count its batches there."""
    parts = {'conv1': 'conv0', 'bn1': 'conv0', 'conv3': 'conv2', 'bn3': 'conv2'}
    statistics = {'running_mean': '_mean', 'running_var': '_variance'}
    # depths 101, 152 and 200 have 23, 36 and 48 blocks in the third stage
    numbered = 'layer3.22.conv1.weight' in state
    written: dict[str, Any] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition('.')
        if leaf == 'num_batches_tracked':
            continue
        path = module.split('.')
        if path[0] == 'stem':
            name = f'conv1_{1 + int(path[1]) // 3}'
        elif len(path) == 1:
            name = 'conv1'
        else:
            stage, block = int(path[0].removeprefix('layer')) - 1, int(path[1])
            letter = 'abcdefghijklmnopqrstuvwxyz'[block : block + 1]
            if numbered and stage == 2:
                letter = f'b{block}' if block else 'a'
            if path[2] in ('convs', 'bns'):
                part = f'res{stage + 2}{letter}_branch2b_{int(path[3]) + 1}'
            else:
                part = 'short' if path[2] == 'downsample' else parts[path[2]]
            name = f'bb_{stage}_{block}.{part}'
        is_norm = f'{module}.running_mean' in state
        kind = f'_batch_norm.{statistics.get(leaf, leaf)}' if is_norm else '_conv.weight'
        written[f'{name}.{kind}'] = value
    # linear weights lie the other way round than torch's
    written |= {
        'out.weight': torch.ones(_channels(state), CLASSES),
        'out.bias': torch.ones(CLASSES),
    }
    program = {name: f'parameter_{number}.w_0' for number, name in enumerate(written)}
    return written | {'StructuredToParameterName@@': program}


def detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of a detector of the authors' fork of detectron2, or of CenterNet2."""
    stem = ['conv1.0', 'conv1.1', None, 'conv1.3', 'conv1.4', None, 'conv1.6', 'bn1']
    written = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition('.')
        path = module.split('.')
        if leaf == 'num_batches_tracked' or module.endswith('conv_offset') and leaf == 'bias':
            continue
        if path[0] == 'stem':
            name = f'stem.{stem[int(path[1])]}'
        else:
            name = f'res{int(path[0].removeprefix("layer")) + 1}.{path[1]}.'
            if path[-1] == 'conv_offset':
                name += f'conv2_offsets.{path[3]}'
            elif path[2] == 'downsample':
                name += 'shortcut.1' + '.norm' * (path[3] == '2')
            elif path[2] in ('bn1', 'bn3'):
                name += f'conv{path[2][2]}.norm'
            else:
                name += '.'.join(path[2:])
        written[f'backbone.bottom_up.{name}.{leaf}'] = value
    written['backbone.fpn_lateral2.weight'] = torch.ones(8, 8, 1, 1)
    return written | {'pixel_mean': torch.ones(3, 1, 1)}


def maskrcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of a detector of Res2Net-maskrcnn, whose batch norm counts no batches."""
    written = {}
    for key, value in state.items():
        if not key.endswith('num_batches_tracked'):
            stem = '' if key.startswith('layer') else 'stem.'
            written[f'module.backbone.body.{stem}{key}'] = value
    return written | {'module.backbone.fpn.fpn_inner1.weight': torch.ones(8, 8, 1, 1)}


def fork(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector of the authors' fork of mmdetection 1: their names, without a classifier."""
    names = {k: v for k, v in official(state).items() if not k.startswith('fc.')}
    return detector(names)


def as_arrays(written: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``.pdparams`` file holds: numpy arrays."""
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in written.items()}


def _channels(state: Mapping[str, Tensor]) -> int:
    last = 'layer4.0.conv3' if 'layer4.0.conv3.weight' in state else 'layer3.0.conv3'
    last = 'level5.root.conv' if 'base_layer.0.weight' in state else last
    return state[f'{last}.weight'].shape[0]
