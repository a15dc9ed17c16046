"""What a model looks at: class activation maps, and effective receptive fields on images."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from ..checks import check_choice, did_you_mean
from ..data.errors import DataError
from ..evaluation.receptive_field import fields_by_level
from ..files import writing
from .arguments import CAM_METHODS
from .errors import ToolError, one_line
from .infer import ConfiguredModel
from .sources import Source, below_common, for_each


class Explainer(nn.Module):
    """Class activation maps of the last level of a model's backbone, by the grad-cam package.

    Grad-CAM (arXiv 1610.02391) shows where features speak for a class of a classifier, for the
    pixels that a segmentor gives to a class, or for the scores of a detector's detections.
    Eigen-CAM (arXiv 2008.00299) shows their first principal component, whatever is predicted, with
    the sign that makes the strongest response positive.

    ``target`` names a class; None is the one predicted for the image or for most of its pixels, and
    all classes of a detector, from a score of ``threshold`` on. The predictor's model is changed.
    """

    def __init__(
        self, predictor: ConfiguredModel, method: str, target: str | None, threshold: float
    ) -> None:
        super().__init__()
        check_choice('method', method, CAM_METHODS)
        classes = predictor.classes
        if target is not None and target not in classes:
            raise ToolError(f'{target} is no class of the model{did_you_mean(target, classes)}')
        self.predictor, self.method, self.threshold = predictor, method, threshold
        self.label = None if target is None else classes.index(target)
        self.model = predictor.model.requires_grad_()  # frozen layers pass gradients on, too
        self.tap = nn.Identity()  # a backbone gives a tuple, and grad-cam needs a tensor
        backbone_of(predictor).register_forward_hook(
            lambda module, inputs, levels: (*levels[:-1], self.tap(levels[-1]))
        )
        self.cam = _cam_class(method)(self, [self.tap])

    def explain(self, image: Path) -> tuple[str, np.ndarray]:
        """What is explained, and the map over the image as the model gets it."""
        from pytorch_grad_cam.utils.image import show_cam_on_image

        pixels, inputs, self.samples = prepared(self.predictor, image)
        self.title = self.method
        with torch.set_grad_enabled(self.method == 'gradcam'):
            try:
                heat = self.cam(inputs, targets=[lambda score: score])[0]
            except NotImplementedError as error:
                if not re.search('mode AD|derivative', str(error)):  # torch's words
                    raise
                remedy = 'use --method eigencam, or nms in test_cfg instead of soft_nms'
                what = f'the scores of {type(self.model).__name__} have no gradient'
                raise ToolError(f'{what} ({one_line(error)}): {remedy}') from error
        heat = heat[: pixels.shape[0], : pixels.shape[1]]  # padding is below and on the right
        if not heat.any():  # no place speaks for it more than another
            self.title += ', no map: all places alike'
        return self.title, show_cam_on_image(pixels, heat, use_rgb=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """The score (1,) to be explained, of an image (1, C, H, W) that is preprocessed."""
        from mmdet.models.detectors import BaseDetector

        label = self.label
        if self.method == 'eigencam':
            self.model.backbone(inputs)
            return inputs.new_zeros(1)
        if isinstance(self.model, BaseDetector):
            if hasattr(self.model, 'panoptic_fusion_head'):  # it keeps its objects to itself
                levels = self.model.extract_feat(inputs)
                proposals = self.model.rpn_head.predict(levels, self.samples, rescale=False)
                head = self.model.roi_head
                found = head.predict(levels, proposals, self.samples, rescale=False)[0]
            else:
                found = self.model(inputs, self.samples, mode='predict')[0].pred_instances
            chosen = found.scores >= self.threshold
            if label is not None:
                chosen &= found.labels == label
            self._say(f'{int(chosen.sum())} detections', label, chosen)
            return (found.scores * chosen).sum()[None]
        logits = self.model(inputs, self.samples, mode='tensor')
        logits = logits[-1] if isinstance(logits, list | tuple) else logits
        if logits.shape[1] == 1:  # the object, label 1, or not
            threshold = getattr(getattr(self.model, 'decode_head', None), 'threshold', 0.5)
            labels = (logits[:, 0].sigmoid() > threshold).long()
            logits = torch.cat([-logits, logits], 1)
            label = 1 if label is None else label
        else:
            labels = logits.argmax(1)
        if label is None:
            label = int(labels.flatten().mode().values)
        if logits.dim() == 2:
            self._say('', label)
            return logits[:, label]
        chosen = labels == label
        self._say(f'{chosen.float().mean():.0%}', label, chosen)  # of the image
        return (logits[:, label] * chosen).sum()[None]

    def _say(self, amount: str, label: int | None, chosen: Tensor | None = None) -> None:
        names = dict(enumerate(self.predictor.classes))
        what = f'{amount} {"" if label is None else names.get(label, label)}'.strip()
        if chosen is not None and not chosen.any():
            raise DataError(f'there is nothing to explain: {what}')
        self.title = f'{self.method}, {what}'


def backbone_of(predictor: ConfiguredModel) -> nn.Module:
    """The backbone of a model; raises a ToolError if it has none."""
    backbone = getattr(predictor.model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        raise ToolError(f'{type(predictor.model).__name__} has no backbone, which explaining needs')
    return backbone


def _cam_class(method: str) -> type:
    try:
        from pytorch_grad_cam import EigenCAM, GradCAM
        from pytorch_grad_cam.utils import svd_on_activations
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"explaining needs the extra 'explain': {error}") from None

    class SignedEigenCAM(EigenCAM):
        def get_cam_image(self, image, layer, target, activations, *_: Any) -> np.ndarray:
            return svd_on_activations.get_2d_projection_with_sign_correction(activations)

    return GradCAM if method == 'gradcam' else SignedEigenCAM


def prepared(predictor: ConfiguredModel, image: Path) -> tuple[np.ndarray, Tensor, Any]:
    """Pixels (H, W, 3) of 0 to 1, RGB, after the pipeline, and what the model gets of them."""
    batch = predictor.prepare(image)
    pixels = batch['inputs'][0].float().permute(1, 2, 0).numpy().clip(0, 255) / 255
    pixels = pixels[..., 2::-1] if pixels.shape[2] > 2 else pixels[..., [0, 0, 0]]
    data = predictor.model.data_preprocessor(batch, False)
    return pixels, data['inputs'], data['data_samples']


def draw_sheet(rows: Sequence[Sequence[tuple[str, Any]]], out: Path) -> None:
    """Writes rows of titled pictures: (H, W, 3) in RGB, or (H, W) in false colours."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(4 * columns, 4 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    for line, row in zip(grid, rows, strict=True):
        for axes, (title, pixels) in zip(line, row, strict=False):
            axes.imshow(pixels, cmap='inferno')
            axes.set_title(title, fontsize=9)
    with writing(out, durable=False) as partial:
        figure.savefig(partial, dpi=120)


def explain_images(
    explainers: Mapping[str, Explainer],
    images: Sequence[Path],
    out: Path,
    given: Sequence[Source] = (),
) -> list[str]:
    """Writes the maps side by side to ``photo.jpg.METHOD.jpg``; a bad image stops no others.

    Returns one line for each image that could not be explained. Pictures keep their places below
    the common folder of the images and of the folders in ``given``. ``explainers`` are by the name
    of the model.
    """
    method = next(iter(explainers.values())).method
    failures: list[str] = []
    inner = below_common(images, filter(os.path.isdir, given))
    targets = {image: out / f'{inner[image]}.{method}.jpg' for image in images}
    taken = {os.path.realpath(image) for image in images}
    for target in targets.values():
        if os.path.realpath(target) in taken:
            raise ToolError(f'--out {out} would replace the image {target}; give another folder')

    def explain(source: Path, file: Path, place: Path) -> None:
        maps = {name: explainer.explain(file) for name, explainer in explainers.items()}
        panels = [(f'{name}: {title}', pixels) for name, (title, pixels) in maps.items()]
        draw_sheet([panels], place)

    for_each(targets, explain, failures)
    return failures


def image_fields(
    predictor: ConfiguredModel, images: Sequence[Path], side: int
) -> dict[str, Tensor]:
    """Effective receptive fields of a model's backbone by level, on images of side x side px."""
    net = backbone_of(predictor).requires_grad_(False)

    def resized(image: Path) -> Tensor:
        pixels, inputs, _ = prepared(predictor, image)
        inputs = inputs[..., : pixels.shape[0], : pixels.shape[1]]  # without padding
        return interpolate(inputs, (side, side), mode='bilinear', antialias=True)

    return fields_by_level(net, map(resized, tqdm(images, unit='image')))
