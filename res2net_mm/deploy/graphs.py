"""Models as modules that a trace can hold: one image in, named tensors out, no branch on data.

A trace keeps the branches that its example took. mmdet's code branches on data in a few places:
boxes that are filtered only where there is something to filter, RoI features of a pyramid level
only where RoIs use it, masks pasted one by one. :func:`traceable` replaces these functions while a
model is traced; all other code is the model's own.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..ops import deform_conv, deform_conv2d

INSTANCE_OFFSET = 1000  # of mmdet's panoptic maps: class + 1000 * number of the instance
Size = tuple[int, int]


class Graph(nn.Module):
    """A copy of a model, in evaluation mode and float32 on the CPU, with its image input.

    Args:
        model: A backbone, classifier, detector or segmentor; it is not changed.
        normalisation: ``mean``, ``std`` (a number a channel, of pixels from 0 to 255) and
            ``channels``, 'RGB' or 'BGR', the order of both and of what the network takes.
        size: (height, width) that every image is padded to, a multiple of ``divisor``; None leaves
            both open.
        divisor: Of the sizes that the network gets, where they are open.
        raw: The input is (N, C, h, w), float32 and normalised; otherwise (N, h, w, 3), uint8, RGB.
    """

    outputs: tuple[str, ...]
    task: str

    def __init__(
        self,
        model: nn.Module,
        normalisation: Mapping[str, Any],
        size: Size | None = None,
        divisor: int = 1,
        raw: bool = False,
    ) -> None:
        super().__init__()
        # batch norm of several processes computes the same, but cannot be traced
        self.model = revert_sync_batchnorm(copy.deepcopy(model).cpu().float())
        self.size, self.divisor, self.raw = size, divisor, raw
        self.swap = normalisation['channels'] == 'BGR'
        for name in ('mean', 'std'):
            values = torch.tensor(normalisation[name], dtype=torch.float32)
            self.register_buffer(name, values[:, None, None], persistent=False)
        self.name_outputs()
        self.eval().requires_grad_(False)

    def name_outputs(self) -> None:
        """Sets ``outputs`` and ``task`` where they depend on the model."""

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 (N, h, w, C), RGB -> float32 (N, C, h, w), in the network's order."""
        if self.swap:
            image = image[..., [2, 1, 0]]
        return (image.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def prepare(self, image: Tensor) -> tuple[Tensor, Sequence[int]]:
        """The network's input, (N, C, H, W), and the image's own (h, w)."""
        image = image if self.raw else self.normalise(image)
        height, width = image.shape[2:]
        if self.size is not None:
            image = nn.functional.pad(image, (0, self.size[1] - width, 0, self.size[0] - height))
            # from here on, all sizes are constants
            image = image.reshape(image.shape[0], image.shape[1], *self.size)
        elif self.divisor > 1:
            padding = (0, -width % self.divisor, 0, -height % self.divisor)
            image = nn.functional.pad(image, padding)
        return image, (height, width)


class Levels(Graph):
    """One output a level of a backbone, c2 to c5; before them c1 if the stem is a level."""

    task = 'backbone'

    def name_outputs(self) -> None:
        stem = ('c1',) * getattr(self.model, 'with_stem', False)
        self.outputs = (*stem, *(f'c{i + 2}' for i in self.model.out_indices))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features, (N, channels, ceil(h / stride), ceil(w / stride)) each."""
        return tuple(self.model(self.prepare(image)[0]))


class Classified(Graph):
    """The share of each class, (classes,), of mmpretrain's ``ImageClassifier`` or our own."""

    task, outputs = 'classification', ('scores',)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the first image."""
        return self.model(self.prepare(image)[0]).softmax(1)[0]


class Segmentor(Graph):
    """The label of each pixel, (h, w), of mmseg's ``EncoderDecoder`` and its kind.

    With one channel, also the probability of label 1.
    """

    task = 'segmentation'

    def name_outputs(self) -> None:
        self.outputs = ('segmentation',) + ('probability',) * (self.model.out_channels == 1)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs of the first image."""
        x, (height, width) = self.prepare(image)
        shape = x.shape[2:]
        meta = dict(ori_shape=shape, img_shape=shape, pad_shape=shape, padding_size=[0] * 4)
        logits = self.model.inference(x, [meta])[0, :, :height, :width]
        if self.model.out_channels == 1:
            found = logits[0].sigmoid()
            return (found > self.model.decode_head.threshold).long(), found
        return logits.argmax(0)


class Detector(Graph):
    """Boxes, scores and labels of a detector of mmdet, and its masks and panoptic map."""

    def name_outputs(self) -> None:
        masks = getattr(getattr(self.model, 'roi_head', None), 'with_mask', False)
        panoptic = hasattr(self.model, 'panoptic_fusion_head')
        self.task = 'panoptic' if panoptic else 'instance' if masks else 'detection'
        self.outputs = ('boxes', 'scores', 'labels')
        self.outputs += ('masks', 'mask_scores') * masks + ('segmentation',) * panoptic
        test_cfg = self.model.test_cfg.get('rcnn', self.model.test_cfg)
        # a buffer, so that a trace can be made with another value
        threshold = torch.tensor(float(test_cfg.get('score_thr', 0)))
        self.register_buffer('score_thr', threshold, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs named ``outputs``."""
        x, shape = self.prepare(image)
        meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
        meta.update(pad_shape=x.shape[2:], batch_input_shape=x.shape[2:], score_thr=self.score_thr)
        samples = [SimpleNamespace(metainfo=meta)]
        levels = self.model.extract_feat(x)
        if hasattr(self.model, 'roi_head'):
            proposals = self.model.rpn_head.predict(levels, samples, rescale=False)
            results = self.model.roi_head.predict(levels, proposals, samples, rescale=False)
        else:
            results = self.model.bbox_head.predict(levels, samples, rescale=False)
        found = results[0]
        outputs = [found.bboxes, found.scores, found.labels]
        if 'masks' in self.outputs:
            outputs += [found.masks, found.mask_scores]
        if 'segmentation' in self.outputs:
            logits = self.model.semantic_head.predict(levels, [meta], rescale=False)[0]
            logits = logits[:, : shape[0], : shape[1]]
            fused = self.model.panoptic_fusion_head.predict(results, [logits])
            outputs.append(fused[0].sem_seg[0])
        return tuple(outputs)


# What stands in for functions of mmdet, for a batch of one image. Arguments are theirs.


def _clip(boxes: Tensor, shape: Sequence[int] | None) -> Tensor:
    """Boxes, (N, 4), inside an image of (height, width)."""
    if shape is None:
        return boxes
    height, width = (torch.as_tensor(n).to(boxes) for n in shape[:2])
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height]))


def _delta2bbox(rois: Tensor, deltas: Tensor, *rule: Any) -> Tensor:
    means, stds, shape, ratio, clip = rule[:5]
    deltas = deltas * deltas.new_tensor(stds) + deltas.new_tensor(means)
    largest = abs(math.log(ratio))
    size = rois[:, 2:] - rois[:, :2]
    centre = (rois[:, :2] + rois[:, 2:]) * 0.5 + size * deltas[:, :2]
    half = size * deltas[:, 2:].clamp(-largest, largest).exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], 1)
    return _clip(boxes, shape) if clip else boxes


def _distance2bbox(points: Tensor, distance: Tensor, max_shape: Any = None) -> Tensor:
    return _clip(torch.cat([points - distance[:, :2], points + distance[:, 2:]], 1), max_shape)


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of (N,) in order, and their indices; all if there are fewer."""
    if count <= 0:
        return scores.sort(descending=True)
    return scores.topk(torch.minimum(torch.tensor(count), torch.as_tensor(scores.shape[0])))


def _nms(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: Mapping[str, Any]) -> Tensor:
    """Indices of the boxes that non-maximum suppression keeps in each group, best first.

    Groups are moved apart as mmcv's ``batched_nms`` moves them, with its rounding.
    """
    # the zero is for no boxes, which have no largest coordinate
    span = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    apart = boxes if cfg.get('class_agnostic') else boxes + (groups.to(boxes) * span)[:, None]
    return torchvision.ops.nms(apart, scores, cfg['iou_threshold'])


def _select(
    graph: Detector, scores: Tensor, _: Any, topk: int, results: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """``filter_scores_and_topk`` of dense heads, with the graph's threshold."""
    flat = scores.flatten()
    above = (flat > graph.score_thr).nonzero().squeeze(1)
    kept, order = _largest(flat[above], topk)
    rows = above[order] // scores.shape[1]
    picked = {key: value[rows] for key, value in results.items()}
    return kept, above[order] % scores.shape[1], rows, picked


def _post_process(
    self: nn.Module, results: InstanceData, cfg: Any, *_: Any, **__: Any
) -> InstanceData:
    """``_bbox_post_process`` of dense heads, and of the RPN, which groups boxes by level."""
    if 'score_factors' in results:
        results.scores = results.scores * results.pop('score_factors')
    smallest = cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        sides = results.bboxes[:, 2:] - results.bboxes[:, :2]
        results = results[(sides > smallest).all(1).nonzero().squeeze(1)]
    groups = results.level_ids if 'level_ids' in results else results.labels
    return results[_nms(results.bboxes, results.scores, groups, cfg.nms)[: cfg.max_per_img]]


def _propose(
    self: nn.Module,
    cls_score_list: Sequence[Tensor],
    bbox_pred_list: Sequence[Tensor],
    mlvl_priors: Sequence[Tensor],
    img_meta: Mapping[str, Any],
    **_: Any,
) -> InstanceData:
    """``_predict_by_feat_single`` of the RPN."""
    parts = []
    levels = zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True)
    for level, (logits, deltas, priors) in enumerate(levels):
        logits = logits.permute(1, 2, 0).reshape(-1, self.cls_out_channels)
        scores = logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(1)[:, :1]
        scores, kept = _largest(scores.flatten(), self.test_cfg.get('nms_pre', -1))
        deltas = deltas.permute(1, 2, 0).reshape(-1, 4)[kept]
        parts.append((priors[kept], deltas, scores, torch.full_like(kept, level)))
    priors, deltas, scores, level_ids = map(torch.cat, zip(*parts, strict=True))
    boxes = self.bbox_coder.decode(priors, deltas, max_shape=img_meta['img_shape'])
    results = InstanceData(bboxes=boxes, scores=scores, level_ids=level_ids)
    return _post_process(self, results, self.test_cfg)


def _detect(
    self: nn.Module,
    roi: Tensor,
    cls_score: Tensor,
    bbox_pred: Tensor,
    img_meta: Mapping[str, Any],
    rcnn_test_cfg: Any,
    **_: Any,
) -> InstanceData:
    """``_predict_by_feat_single`` of RoI heads; decodes only what passes the threshold."""
    scores = cls_score.softmax(1)[:, :-1]
    above = (scores.flatten() > img_meta['score_thr']).nonzero().squeeze(1)
    rows, labels = above // self.num_classes, above % self.num_classes
    deltas = bbox_pred[rows] if self.reg_class_agnostic else bbox_pred.reshape(-1, 4)[above]
    boxes = self.bbox_coder.decode(roi[rows, 1:], deltas, max_shape=img_meta['img_shape'])
    results = InstanceData(bboxes=boxes, scores=scores.flatten()[above], labels=labels)
    kept = _nms(boxes, results.scores, labels, rcnn_test_cfg.nms)
    return results[kept[: rcnn_test_cfg.max_per_img]]


def _extract(
    self: nn.Module, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None
) -> Tensor:
    """RoI features of all levels, those without a RoI too."""

    def align(level: int, rois: Tensor) -> Tensor:
        layer = self.roi_layers[level]
        places = layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        return torchvision.ops.roi_align(feats[level], rois, *places)

    if len(feats) == 1:
        return align(0, rois)
    levels = self.map_roi_levels(rois, len(feats))
    if roi_scale_factor is not None:
        rois = self.roi_rescale(rois, roi_scale_factor)
    parts = [(levels == level).nonzero().squeeze(1) for level in range(len(feats))]
    pooled = torch.cat([align(level, rois[part]) for level, part in enumerate(parts)])
    return pooled[torch.cat(parts).argsort()]


def _paste(
    self: nn.Module,
    mask_preds: Sequence[Tensor],
    results_list: Sequence[InstanceData],
    batch_img_metas: Sequence[Mapping[str, Any]],
    rcnn_test_cfg: Any,
    activate_map: bool = False,
    **_: Any,
) -> Sequence[InstanceData]:
    """Pastes each mask by bilinear interpolation as a product with two matrices."""
    results, masks = results_list[0], mask_preds[0]
    masks = masks if activate_map else masks.sigmoid()
    index = torch.zeros_like(results.labels) if self.class_agnostic else results.labels
    masks = masks.gather(1, index[:, None, None, None].expand(-1, 1, *masks.shape[2:]))[:, 0]

    def shares(axis: int) -> Tensor:
        """What each cell of a mask gives each pixel along x (0) or y, (N, pixels, cells)."""
        length, cells = batch_img_metas[0]['img_shape'][1 - axis], masks.shape[2 - axis]
        start, end = results.bboxes[:, axis, None], results.bboxes[:, 2 + axis, None]
        pixel = torch.arange(length)
        place = (pixel + 0.5 - start) / (end - start)
        place = torch.where(end == start, 0.5, place) * cells - 0.5  # no area: as mmdet
        near = (pixel >= start.floor() - 1) & (pixel < end.ceil() + 1)
        share = (1 - (place[:, :, None] - torch.arange(cells)).abs()).clamp(min=0)
        return share * near[:, :, None]

    results.masks = shares(1) @ masks @ shares(0).transpose(1, 2) >= rcnn_test_cfg.mask_thr_binary
    results.mask_scores = masks
    return [results]


@torch.jit.script
def _lay_masks(masks: Tensor, overlap: float) -> Tensor:
    """Number of the mask on top of each pixel, 0 for none; masks are laid one after the other."""
    numbers = torch.zeros_like(masks[0], dtype=torch.long)
    for i in range(masks.shape[0]):
        mask, taken = masks[i], numbers > 0
        area, covered = mask.sum(), (mask & taken).sum()
        laid = mask & ~taken & (area > 0) & (covered / (area + 1e-5) <= overlap)
        numbers = torch.where(laid, i + 1, numbers)
    return numbers


def _fuse(self: nn.Module, mask_results: InstanceData, seg_preds: Tensor) -> SimpleNamespace:
    """The panoptic map: things over stuff, and stuff of small areas left out."""
    order = mask_results.scores.argsort(descending=True)
    masks, labels = mask_results.masks[order], mask_results.labels[order]
    nothing = torch.zeros_like(seg_preds[:1], dtype=torch.bool)
    numbers = _lay_masks(torch.cat([masks, nothing]), float(self.test_cfg.mask_overlap))
    seen = torch.zeros(labels.shape[0] + 1, dtype=torch.long)
    seen = seen.scatter(0, numbers.flatten(), torch.ones_like(numbers.flatten()))
    ids = torch.cat([seen[:1] * 0, labels + seen[1:].cumsum(0) * INSTANCE_OFFSET])
    fused = torch.where(numbers > 0, ids[numbers], seg_preds.argmax(0) + self.num_things_classes)
    classes = (fused % INSTANCE_OFFSET).flatten()
    counts = torch.zeros(self.num_classes + 1).scatter_add(0, classes, torch.ones(classes.shape))
    small = counts[classes] < self.test_cfg.stuff_area_limit
    small = (small & (classes >= self.num_things_classes)).reshape(fused.shape)
    return SimpleNamespace(sem_seg=torch.where(small, self.num_classes, fused)[None].int())


class _Traceable(TorchFunctionMode):
    """Calls that a trace would not hold, or only for one size."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.adaptive_avg_pool2d:
            size = tuple(int(n) for n in deform_conv.pair(args[1]) if n is not None)
            if len(size) == 2 and size != (1, 1):  # ONNX has the pool to one pixel only
                return adaptive_pool(args[0], size)
        # mmdet splits rows by their numbers in each image: of one image these are all rows
        if func is Tensor.split and isinstance(args[1], (list, tuple)) and len(args[1]) == 1:
            return (args[0],)
        return func(*args, **(kwargs or {}))


@contextmanager
def traceable(graph: Graph, native_deform: bool = False) -> Iterator[None]:
    """Has a graph's model compute without branches on data, by operators that runtimes know.

    Deformable convolutions are computed by torchvision's operator if ``native_deform``, for which
    OpenVINO has one of its own, and otherwise by ``grid_sample``.
    """
    convolve = torchvision.ops.deform_conv2d if native_deform else deform_conv2d
    replaced = [(deform_conv, 'deform_conv2d', convolve)]
    if isinstance(graph, Detector):
        replaced += _of_mmdet(graph, convolve)
    if isinstance(graph, Segmentor):
        wrappers = sys.modules['mmseg.models.utils.wrappers']
        replaced.append((wrappers.Upsample, 'forward', _upsample))
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(_Traceable())
        yield


def _of_mmdet(graph: Detector, convolve: Callable[..., Tensor]) -> Iterator[tuple[Any, str, Any]]:
    """What to replace in mmdet and mmcv: owner, name, value."""
    from mmcv import ops
    from mmdet import models
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
    from mmdet.models.utils import filter_scores_and_topk
    from mmdet.structures.bbox import distance2bbox

    functions = {
        delta2bbox: _delta2bbox,
        distance2bbox: _distance2bbox,
        filter_scores_and_topk: partial(_select, graph),
    }
    for module in [m for name, m in sys.modules.items() if name.startswith('mmdet.')]:
        for function, value in functions.items():  # each was imported by name
            if vars(module).get(function.__name__) is function:
                yield module, function.__name__, value
    yield BaseDenseHead, '_bbox_post_process', _post_process
    yield models.RPNHead, '_predict_by_feat_single', _propose
    yield models.BBoxHead, '_predict_by_feat_single', _detect
    yield models.SingleRoIExtractor, 'forward', _extract
    yield models.FCNMaskHead, 'predict_by_feat', _paste
    yield models.HeuristicFusionHead, '_predict_single', _fuse

    def v1(x: Tensor, offset: Tensor, weight: Tensor, *places: Any) -> Tensor:
        return convolve(x, offset, weight, None, *places[:3])

    def v2(x: Tensor, offset: Tensor, mask: Tensor, *given: Any) -> Tensor:
        return convolve(x, offset, *given[:5], mask)

    yield sys.modules[ops.DeformConv2d.__module__], 'deform_conv2d', v1
    yield sys.modules[ops.ModulatedDeformConv2d.__module__], 'modulated_deform_conv2d', v2


def adaptive_pool(x: Tensor, size: Size) -> Tensor:
    """``adaptive_avg_pool2d`` of (N, C, H, W) as a matrix product along each axis."""

    def shares(cells: int, length: int) -> Tensor:
        """Share of each pixel in the mean of each cell, (cells, length)."""
        cell, pixel = torch.arange(cells)[:, None], torch.arange(length)
        first, after = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
        return ((pixel >= first) & (pixel < after)).to(x.dtype) / (after - first)

    return shares(size[0], x.shape[2]) @ x @ shares(size[1], x.shape[3]).t()


def _upsample(self: nn.Module, x: Tensor) -> Tensor:
    """mmseg's ``Upsample``, whose ``int(size * scale)`` would be a constant in a trace."""
    size = self.size or [
        (torch.as_tensor(n).double() * self.scale_factor).long() for n in x.shape[2:]
    ]
    return nn.functional.interpolate(x, size, None, self.mode, self.align_corners)
