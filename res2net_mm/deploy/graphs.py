"""Models as modules that a trace can hold: one image in, named tensors out, no branch on data.

A trace keeps the branches that its example took. mmdet's code branches on data in a few places:
boxes that are filtered only where there is something to filter, RoI features of a pyramid level
only where RoIs use it, masks that are pasted one by one. :func:`traceable` replaces these functions
while a model is traced; all other code is the model's own.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from ..ops import deform_conv, deform_conv2d

INSTANCE_OFFSET = 1000  # of mmdet's panoptic maps: class + 1000 * number of the instance
Size = tuple[int, int]


class Graph(nn.Module):
    """A copy of a model, in evaluation mode and float32 on the CPU, with its image input.

    Args:
        model: A backbone, detector or segmentor; it is not changed.
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
        self.eval().requires_grad_(False)

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
    """One output a level of a backbone, c2 to c5."""

    task = 'backbone'

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.outputs = tuple(f'c{i + 2}' for i in model.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features, (N, channels, ceil(h / stride), ceil(w / stride)) each."""
        return tuple(self.model(self.prepare(image)[0]))


class Segmentor(Graph):
    """The label of each pixel, (h, w), of mmseg's ``EncoderDecoder`` and its kind."""

    task, outputs = 'segmentation', ('segmentation',)

    def forward(self, image: Tensor) -> Tensor:
        """Labels of the first image."""
        x, (height, width) = self.prepare(image)
        shape = x.shape[2:]
        meta = dict(ori_shape=shape, img_shape=shape, pad_shape=shape, padding_size=[0] * 4)
        logits = self.model.inference(x, [meta])[0, :, :height, :width]
        if self.model.out_channels == 1:
            return (logits[0].sigmoid() > self.model.decode_head.threshold).long()
        return logits.argmax(0)


class Detector(Graph):
    """Boxes, scores and labels of a detector of mmdet, and its masks and panoptic map."""

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        masks = getattr(getattr(model, 'roi_head', None), 'with_mask', False)
        panoptic = hasattr(model, 'panoptic_fusion_head')
        self.task = 'panoptic' if panoptic else 'instance' if masks else 'detection'
        self.outputs = ('boxes', 'scores', 'labels')
        self.outputs += ('masks', 'mask_scores') * masks + ('segmentation',) * panoptic
        test_cfg = model.test_cfg.get('rcnn', model.test_cfg)
        # a buffer, so that a trace can be made with another value
        threshold = torch.tensor(float(test_cfg.get('score_thr', 0)))
        self.register_buffer('score_thr', threshold, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs named ``outputs``."""
        x, shape = self.prepare(image)
        meta = dict(
            img_shape=shape, ori_shape=shape, pad_shape=x.shape[2:], scale_factor=(1.0, 1.0)
        )
        meta.update(batch_input_shape=x.shape[2:], score_thr=self.score_thr)
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


# What stands in for mmdet's functions, with their signatures, for a batch of one image.


def _clip(boxes: Tensor, shape: Sequence[int] | None) -> Tensor:
    """Boxes, (..., 4), inside an image of (height, width)."""
    if shape is None:
        return boxes
    height, width = (torch.as_tensor(n).to(boxes) for n in shape[:2])
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height]))


def _delta2bbox(
    rois: Tensor,
    deltas: Tensor,
    means: Sequence[float] = (0.0,) * 4,
    stds: Sequence[float] = (1.0,) * 4,
    max_shape: Sequence[int] | None = None,
    wh_ratio_clip: float = 16 / 1000,
    clip_border: bool = True,
    add_ctr_clamp: bool = False,
    ctr_clamp: int = 32,
) -> Tensor:
    deltas = deltas * deltas.new_tensor(stds) + deltas.new_tensor(means)
    largest = abs(torch.tensor(wh_ratio_clip, dtype=torch.float64).log().item())
    size = rois[:, 2:] - rois[:, :2]
    centre = (rois[:, :2] + rois[:, 2:]) * 0.5 + size * deltas[:, :2]
    half = size * deltas[:, 2:].clamp(-largest, largest).exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], 1)
    return _clip(boxes, max_shape) if clip_border else boxes


def _distance2bbox(
    points: Tensor, distance: Tensor, max_shape: Sequence[int] | None = None
) -> Tensor:
    return _clip(torch.cat([points - distance[:, :2], points + distance[:, 2:]], 1), max_shape)


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of (N,) in order and their indices; all where there are fewer."""
    if count <= 0:
        return scores.sort(descending=True)
    return scores.topk(torch.minimum(torch.tensor(count), torch.as_tensor(scores.shape[0])))


def _filter_scores_and_topk(
    scores: Tensor, score_thr: Tensor, topk: int, results: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor] | None]:
    flat = scores.flatten()
    above = (flat > score_thr).nonzero().squeeze(1)
    kept, order = _largest(flat[above], topk)
    index = above[order]
    rows = index // scores.shape[1]
    picked = None if results is None else {key: value[rows] for key, value in results.items()}
    return kept, index % scores.shape[1], rows, picked


def _nms(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: Mapping[str, Any]) -> Tensor:
    """Indices of the boxes that non-maximum suppression keeps in each group, best first.

    Groups are moved apart as mmcv's ``batched_nms`` moves them, to its rounding.
    """
    # of no boxes there is no largest coordinate
    span = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    apart = boxes if cfg.get('class_agnostic') else boxes + (groups.to(boxes) * span)[:, None]
    return torchvision.ops.nms(apart, scores, cfg['iou_threshold'])


def _bbox_post_process(
    self: nn.Module,
    results: InstanceData,
    cfg: Any,
    rescale: bool = False,
    with_nms: bool = True,
    img_meta: Mapping[str, Any] | None = None,
) -> InstanceData:
    """Of dense heads and of the RPN, which groups boxes by level."""
    if 'score_factors' in results:
        results.scores = results.scores * results.pop('score_factors')
    smallest = cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        sides = results.bboxes[:, 2:] - results.bboxes[:, :2]
        results = results[(sides > smallest).all(1).nonzero().squeeze(1)]
    groups = results.level_ids if 'level_ids' in results else results.labels
    kept = _nms(results.bboxes, results.scores, groups, cfg.nms)[: cfg.max_per_img]
    return results[kept]


def _rpn_predict_by_feat_single(
    self: nn.Module,
    cls_score_list: Sequence[Tensor],
    bbox_pred_list: Sequence[Tensor],
    score_factor_list: Sequence[Tensor],
    mlvl_priors: Sequence[Tensor],
    img_meta: Mapping[str, Any],
    cfg: Any,
    rescale: bool = False,
    with_nms: bool = True,
) -> InstanceData:
    cfg, parts = self.test_cfg if cfg is None else cfg, []
    levels = zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True)
    for level, (logits, deltas, priors) in enumerate(levels):
        logits = logits.permute(1, 2, 0).reshape(-1, self.cls_out_channels)
        scores = logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(1)[:, :1]
        scores, kept = _largest(scores.flatten(), cfg.get('nms_pre', -1))
        deltas = deltas.permute(1, 2, 0).reshape(-1, 4)[kept]
        parts.append((priors[kept], deltas, scores, torch.full_like(kept, level)))
    priors, deltas, scores, level_ids = map(torch.cat, zip(*parts, strict=True))
    boxes = self.bbox_coder.decode(priors, deltas, max_shape=img_meta['img_shape'])
    results = InstanceData(bboxes=boxes, scores=scores, level_ids=level_ids)
    return self._bbox_post_process(results, cfg)


def _roi_predict_by_feat_single(
    self: nn.Module,
    roi: Tensor,
    cls_score: Tensor,
    bbox_pred: Tensor,
    img_meta: Mapping[str, Any],
    rescale: bool = False,
    rcnn_test_cfg: Any = None,
) -> InstanceData:
    """Decodes only what passes the score threshold."""
    scores = cls_score.softmax(1)[:, :-1]
    above = (scores.flatten() > img_meta['score_thr']).nonzero().squeeze(1)
    rows, labels = above // self.num_classes, above % self.num_classes
    deltas = bbox_pred[rows] if self.reg_class_agnostic else bbox_pred.reshape(-1, 4)[above]
    boxes = self.bbox_coder.decode(roi[rows, 1:], deltas, max_shape=img_meta['img_shape'])
    results = InstanceData(bboxes=boxes, scores=scores.flatten()[above], labels=labels)
    kept = _nms(boxes, results.scores, labels, rcnn_test_cfg.nms)
    return results[kept[: rcnn_test_cfg.max_per_img]]


def _extract_rois(
    self: nn.Module,
    feats: Sequence[Tensor],
    rois: Tensor,
    roi_scale_factor: float | None = None,
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


def _masks_by_feat(
    self: nn.Module,
    mask_preds: Sequence[Tensor],
    results_list: Sequence[InstanceData],
    batch_img_metas: Sequence[Mapping[str, Any]],
    rcnn_test_cfg: Any,
    rescale: bool = False,
    activate_map: bool = False,
) -> Sequence[InstanceData]:
    """Pastes masks by bilinear interpolation as a product of two matrices for each."""
    results, masks = results_list[0], mask_preds[0]
    masks = masks if activate_map else masks.sigmoid()
    if self.class_agnostic:
        masks = masks[:, 0]
    else:
        index = results.labels[:, None, None, None].expand(-1, 1, *masks.shape[2:])
        masks = masks.gather(1, index)[:, 0]

    def shares(axis: int) -> Tensor:
        """What each cell of the mask gives each pixel along x or y, (N, pixels, cells)."""
        length, cells = batch_img_metas[0]['img_shape'][1 - axis], masks.shape[2 - axis]
        start, end = results.bboxes[:, axis, None], results.bboxes[:, 2 + axis, None]
        place = (torch.arange(length) + 0.5 - start) / (end - start)
        # boxes without an area: as mmdet
        place = torch.where(end == start, 0.5, place) * cells - 0.5
        return (1 - (place[:, :, None] - torch.arange(cells)).abs()).clamp(min=0)

    pasted = shares(1) @ masks @ shares(0).transpose(1, 2)
    results.masks = pasted >= rcnn_test_cfg.mask_thr_binary
    results.mask_scores = masks
    return [results]


@torch.jit.script
def _lay_masks(masks: Tensor, overlap: float) -> Tensor:
    """Number of the mask that is on top of each pixel, 0 for none, masks laid one by one."""
    numbers = torch.zeros_like(masks[0], dtype=torch.long)
    for i in range(masks.shape[0]):
        mask, taken = masks[i], numbers > 0
        area, covered = mask.sum(), (mask & taken).sum()
        laid = mask & ~taken & (area > 0) & (covered / (area + 1e-5) <= overlap)
        numbers = torch.where(laid, i + 1, numbers)
    return numbers


def _fuse(self: nn.Module, mask_results: InstanceData, seg_preds: Tensor, **_: Any) -> Any:
    """mmdet's panoptic map: things over stuff, and stuff of small areas left out."""
    order = mask_results.scores.argsort(descending=True)
    masks, labels = mask_results.masks[order], mask_results.labels[order]
    nothing = torch.zeros_like(seg_preds[:1], dtype=torch.bool)
    numbers = _lay_masks(torch.cat([masks, nothing]), float(self.test_cfg.mask_overlap))
    seen = torch.zeros(labels.shape[0] + 1, dtype=torch.long)
    seen = seen.scatter(0, numbers.flatten(), torch.ones_like(numbers.flatten()))
    ids = torch.cat([labels[:1] * 0, labels + seen[1:].cumsum(0) * INSTANCE_OFFSET])
    classes = seg_preds.argmax(0) + self.num_things_classes
    fused = torch.where(numbers > 0, ids[numbers], classes)
    flat = (fused % INSTANCE_OFFSET).flatten()
    counts = torch.zeros(self.num_classes + 1).scatter_add(0, flat, torch.ones(flat.shape))
    small = (counts[flat] < self.test_cfg.stuff_area_limit) & (flat >= self.num_things_classes)
    fused = torch.where(small.reshape(fused.shape), self.num_classes, fused)
    return SimpleNamespace(sem_seg=fused[None].int())


class _OneImage(TorchFunctionMode):
    """Lengths that mmdet's code takes as Python numbers, which a trace would keep.

    Splitting the rows of a batch by image gives, for one image, all of them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.split and isinstance(args[1], (list, tuple)) and len(args[1]) == 1:
            return (args[0],)
        return func(*args, **(kwargs or {}))


@contextmanager
def traceable(graph: Graph, native_deform: bool = False) -> Iterator[None]:
    """Has a graph's model compute without branches on data, by operators that runtimes know.

    Nothing stays replaced afterwards.

    Args:
        graph: What is traced.
        native_deform: Compute deformable convolutions by torchvision's operator, which OpenVINO
            has as one of its own; otherwise by ``grid_sample``.
    """
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(patch.object(owner, name, value))

        for module in graph.modules():
            for name, child in module.named_children():
                if (standard := _standard(child)) is not None:
                    stack.callback(setattr, module, name, child)
                    setattr(module, name, standard)
        convolve = torchvision.ops.deform_conv2d if native_deform else deform_conv2d
        replace(deform_conv, 'deform_conv2d', convolve)
        if isinstance(graph, Detector):
            for owner, name, value in _of_mmdet(graph, convolve):
                replace(owner, name, value)
            stack.enter_context(_OneImage())
        yield


def _of_mmdet(graph: Detector, convolve: Any) -> Iterator[tuple[Any, str, Any]]:
    """What to replace in mmdet and mmcv: owner, name, value."""
    models = importlib.import_module('mmdet.models')
    heads = importlib.import_module('mmdet.models.dense_heads')

    def select(scores: Tensor, score_thr: float, topk: int, results: Any = None) -> Any:
        return _filter_scores_and_topk(scores, graph.score_thr, topk, results)

    functions = {
        importlib.import_module('mmdet.structures.bbox').distance2bbox: _distance2bbox,
        importlib.import_module('mmdet.models.utils').filter_scores_and_topk: select,
        importlib.import_module(
            'mmdet.models.task_modules.coders.delta_xywh_bbox_coder'
        ).delta2bbox: _delta2bbox,
    }
    for module in [m for name, m in sys.modules.items() if name.startswith('mmdet.')]:
        for function, value in functions.items():
            if vars(module).get(function.__name__) is function:
                yield module, function.__name__, value
    yield heads.base_dense_head.BaseDenseHead, '_bbox_post_process', _bbox_post_process
    yield models.RPNHead, '_bbox_post_process', _bbox_post_process
    yield models.RPNHead, '_predict_by_feat_single', _rpn_predict_by_feat_single
    yield models.BBoxHead, '_predict_by_feat_single', _roi_predict_by_feat_single
    yield models.SingleRoIExtractor, 'forward', _extract_rois
    yield models.FCNMaskHead, 'predict_by_feat', _masks_by_feat
    yield models.HeuristicFusionHead, '_predict_single', _fuse
    for name, order in (('deform_conv', False), ('modulated_deform_conv', True)):
        module = importlib.import_module(f'mmcv.ops.{name}')
        yield module, f'{name}2d', _as_mmcv(convolve, order)


def _as_mmcv(convolve: Any, modulated: bool) -> Any:
    """A deformable convolution with the signature of mmcv's."""
    if modulated:
        return lambda x, offset, mask, weight, bias, stride, padding, dilation, *_: convolve(
            x, offset, weight, bias, stride, padding, dilation, mask
        )
    return lambda x, offset, weight, stride, padding, dilation, *_: convolve(
        x, offset, weight, None, stride, padding, dilation
    )


def _standard(module: nn.Module) -> nn.Module | None:
    """What computes the same as a module by operators of ONNX, at every size; None: itself."""
    if isinstance(module, nn.AdaptiveAvgPool2d):  # ONNX has the pool to one pixel only
        size = _pair(module.output_size)
        return None if None in size or size == (1, 1) else AdaptivePool(size)
    wrappers = sys.modules.get('mmseg.models.utils.wrappers')
    if isinstance(module, getattr(wrappers, 'Upsample', ())) and not module.size:
        return TracedUpsample(module.scale_factor, module.mode, module.align_corners)
    return None


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as a matrix product along each axis."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size: tuple[int, int] = _pair(size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, *size)."""
        rows, columns = (_cell_shares(n, x.shape[2 + i], x) for i, n in enumerate(self.size))
        return rows @ x @ columns.t()


def _cell_shares(cells: int, length: int, like: Tensor) -> Tensor:
    """Share of each pixel in the mean of each cell, (cells, length)."""
    cell = torch.arange(cells, device=like.device)[:, None]
    pixel = torch.arange(length, device=like.device)
    first, after = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    return ((pixel >= first) & (pixel < after)).to(like.dtype) / (after - first)


class TracedUpsample(nn.Module):
    """mmseg's ``Upsample``, whose ``int(size * scale)`` would be a constant in a trace."""

    def __init__(self, scale_factor: float, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.given = dict(mode=mode, align_corners=align_corners)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H * scale_factor, W * scale_factor), sizes rounded down."""
        size = [(torch.as_tensor(n).double() * self.scale_factor).long() for n in x.shape[2:]]
        return nn.functional.interpolate(x, size, **self.given)
