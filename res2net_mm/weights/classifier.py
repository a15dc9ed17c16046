"""Classifiers: a backbone, global average pooling and a linear layer, with published weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..backbones import Backbone, create_backbone
from ..checks import check_positive
from .layouts import CLASSIFIER, convert, listing, write_convention
from .loading import LoadReport, load_converted, name_of, unfit
from .reading import CheckpointError
from .sources import read_backbone
from .zoo import SCHEME

_LAYER = 'head.fc'  # as in mmpretrain's classifiers


class Classifier(nn.Module):
    """A backbone, global average pooling of its last level, and a linear layer.

    Tensors have the names of mmpretrain's ``ImageClassifier``: ``backbone.*``, ``head.fc.*``.
    """

    def __init__(self, backbone: Backbone, num_classes: int = 1000) -> None:
        super().__init__()
        check_positive('num_classes', num_classes)
        self.backbone = backbone
        fc = nn.Linear(backbone.out_channels[-1], num_classes)
        self.head = nn.Sequential(
            OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=fc)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, num_classes), of normalised images, (N, in_channels, H, W)."""
        return self.head(self.backbone(x)[-1])


def create_classifier(
    name: str,
    pretrained: bool | str | Path = False,
    num_classes: int = 1000,
    **backbone_arguments: Any,
) -> Classifier:
    """Builds a classifier on a named network.

    Args:
        name: One of ``list_backbones()``.
        pretrained: True loads the weights published under this name, a string those of another
            name of ``ZOO``, of a file or of an address, with their classification layer.
        num_classes: If the file has another number, or no classification layer, the layer keeps
            its random weights, and a warning says so.
        **backbone_arguments: Arguments of the backbone that replace the variant's.

    Returns:
        The classifier in training mode. Its batch norm trains, also with loaded weights; pass
        ``norm_eval=True`` to keep the statistics.

    Raises:
        ValueError: The name is unknown, an argument has an invalid value, or the weights do not
            fit.
        TypeError: An argument is not one of the backbone.

    Example:
        >>> model = create_classifier('res2net50_v1b_26w_4s', num_classes=3).eval()
        >>> model(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 3])
    """
    if pretrained and 'init_cfg' in backbone_arguments:
        raise ValueError('pretrained and init_cfg exclude each other: give one of them')
    backbone = create_backbone(name, **{'norm_eval': False, **backbone_arguments})
    model = Classifier(backbone, num_classes)
    if pretrained:
        published = f'{SCHEME}{name.removesuffix("_dcn")}'
        report = load_classifier(model, published if pretrained is True else pretrained)
        MMLogger.get_current_instance().info(str(report))
    return model


def load_classifier(
    model: Classifier, source: str | Path | Mapping[str, Any], *, trust: bool = False
) -> LoadReport:
    """:func:`load_weights` for a classifier; after an error it is unchanged.

    The backbone has to fit exactly. A classification layer of another number of classes is left
    out, and a warning says so.
    """
    name = name_of(source)
    converted, entry = read_backbone(source, trust=trust)
    own, given = model.head.fc, converted.classifier
    shapes = {leaf: tuple(value.shape) for leaf, value in given.items()}
    classes = (shapes.get('bias') or (0,))[0]
    if given and shapes != dict(weight=(classes, own.in_features), bias=(classes,)):
        raise CheckpointError(
            f'{name}: its classification layer has {shapes}, but the backbone gives '
            f'{own.in_features} channels; nothing was loaded'
        )
    taken = {} if classes != own.out_features else given
    for leaf, value in taken.items():
        if reason := unfit(leaf, value, own.state_dict()[leaf]):
            raise CheckpointError(f'{name}: {leaf} of its classification layer {reason}')
    report = load_converted(model.backbone, converted, entry, name)
    report.matched = [f'backbone.{key}' for key in report.matched]
    if taken:
        own.load_state_dict(taken)
        report.matched += [f'{_LAYER}.{leaf}' for leaf in taken]
        del report.dropped[CLASSIFIER]
    else:
        has = f'has {classes} classes' if given else 'has no classification layer'
        MMLogger.get_current_instance().warning(
            f'{name}: the file {has}, the model {own.out_features}: its classification layer '
            'stays random'
        )
    return report


def name_as_classifier(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Renames the weights of a published classifier to those of a whole model, in place.

    Args:
        model: What will load them; anything but a classifier on a backbone of this package, such
            as mmpretrain's ``ImageClassifier``, leaves the checkpoint as it is.
        checkpoint: From :func:`read_source`.
    """
    state = checkpoint.get('state_dict', checkpoint)
    ours = isinstance(getattr(model, 'backbone', None), Backbone)
    ours = ours and isinstance(getattr(getattr(model, 'head', None), 'fc', None), nn.Linear)
    named = any(key.startswith('backbone.') for key in state)
    if not ours or (named and 'backbone.stem.0.conv.weight' not in state):  # mmpretrain's own
        return
    converted = convert(checkpoint)
    for rule, names in converted.dropped.items():
        if rule.startswith('weights other than'):  # timm's averaged ones are taken
            MMLogger.get_current_instance().info(f'left out, {rule}: {listing(names)}')
    whole = OrderedDict((f'backbone.{key}', value) for key, value in converted.state.items())
    layer = converted.classifier or checkpoint.pop(CLASSIFIER, {})
    whole.update({f'{_LAYER}.{leaf}': torch.as_tensor(layer[leaf]) for leaf in layer})
    write_convention(whole, converted.convention, 'backbone')
    checkpoint['state_dict'] = whole
