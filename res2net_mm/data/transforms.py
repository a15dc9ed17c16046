"""Pipeline steps that keep bad input out of training, and how they get into a config."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import cv2
import mmcv
import mmcv.transforms
import numpy as np
from mmengine import fileio

from ..registry import SCOPE, TRANSFORMS
from .errors import DataError
from .findings import WARNING
from .sets.images import Size, check_pixels, read_header, size_fault
from .sets.label_maps import read_binary_mask
from .sets.nodes import type_name

_JPEG_START, _PNG_START = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xaeB`\x82'  # the last chunk's name and checksum, the same in every file
# 00 is a stuffed byte of the coded image, D0 to D7 are restarts inside it, FF pads before a marker
_JPEG_MARKER = re.compile(rb'\xff([^\x00\xd0-\xd7\xff])', re.DOTALL)
_JPEG_END = 0xD9

_REPLACE = 'replace or remove the file'

_LOADERS = {f'{scope}LoadImageFromFile' for scope in ('', 'mmcv.', 'mmdet.', 'mmseg.')}
_LOADERS |= {'LoadImage', 'mmpose.LoadImage'}
_LOADER_OPTIONS = (
    'color_type',
    'imdecode_backend',
    'backend_args',
    'ignore_empty',
)  # no to_float32
# transforms that choose from a list: one more would be another choice
_ALTERNATIVES = ('TestTimeAug', 'RandomChoice')
_OF_EACH_BOX = {
    'gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags', 'gt_masks', 'gt_keypoints',
    'gt_instances_ids',
}  # fmt: skip


@TRANSFORMS.register_module()
class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, except that an image that is not whole, or not the annotated
    one, is an error that names it.

    Many releases of OpenCV silently fill the missing part of a truncated file with grey. Here a
    JPEG must reach its end-of-image marker and a PNG its IEND chunk. If the annotations have
    ``width`` and ``height``, the image must have them. Pixels that a data set has as ``img`` (RGB)
    are put into mmcv's order. Arguments and results are mmcv's; with ``ignore_empty``, a file that
    is missing or not whole gives None.

    Raises:
        DataError: The image cannot be used, or it or its label map is too large.
    """

    def transform(self, results: dict) -> dict | None:
        """Adds ``img`` (H, W, 3) or (H, W), ``img_shape`` and ``ori_shape``."""
        try:
            if 'img_path' not in results and 'img' in results:  # pixels of a data set, RGB
                image = results['img']
                image = np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image
            else:
                image = self._load(results['img_path'])
            if results.get('seg_map_path'):  # which a later step of mmseg's or mmdet's loads
                check_pixels(results['seg_map_path'], results['seg_map_path'])
        except Exception:
            if self.ignore_empty:
                return None
            raise
        annotated = results.get('width'), results.get('height')
        if all(annotated) and annotated != image.shape[1::-1]:
            self._refuse_size(results, annotated, image.shape[1::-1])
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def picture(self, file: str) -> np.ndarray:
        """(H, W, 3) of uint8, BGR: what the pipeline sees, for people; raises as ``transform``."""
        image = np.atleast_3d(self._load(file))
        image = image[..., :3] if image.shape[2] > 2 else np.repeat(image[..., :1], 3, 2)
        if image.dtype == np.uint8:
            return image
        image = image.astype(np.float64)  # 16 bits or floats: from the least value to the largest
        finite = image[np.isfinite(image)]
        low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
        scaled = (image - low) * (255 / (high - low or 1))
        return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)

    def _refuse_size(self, results: dict, annotated: Size, loaded: Size) -> None:
        file, boxes = results['img_path'], None
        if 'xml_path' in results:
            boxes = [instance['bbox'] for instance in results.get('instances') or ()]
        fault = size_fault(file, annotated, loaded, read_header(self._read(file)), boxes)
        if fault.severity != WARNING:
            raise DataError(fault.what, fault.file, fault.remedy)
        warnings.warn(f'{file}: {fault.what}', stacklevel=2)

    def _load(self, file: str) -> np.ndarray:
        content = self._read(file)
        reason = truncation(content)
        if reason:
            raise DataError(f'the image is {reason}', file, _REPLACE)
        check_pixels(content, file)
        reason = f'it is no image that can be decoded to {self.color_type} with 8 bits'
        try:
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        except (OSError, SyntaxError, cv2.error) as error:
            raise DataError(f'{reason} ({_flat(error)})', file, _REPLACE) from error
        if image is None:
            raise DataError(reason, file, _REPLACE)
        return image

    def _read(self, file: str) -> bytes:
        if os.path.exists(file) and not os.path.isfile(file):  # reading a pipe may never end
            raise DataError('the image cannot be read (it is no regular file)', file, _REPLACE)
        try:
            return fileio.get(file, backend_args=self.backend_args)
        except OSError as error:
            raise DataError(f'the image cannot be read ({_flat(error)})', file, _REPLACE) from error


@TRANSFORMS.register_module()
class CheckLabelMap(mmcv.transforms.BaseTransform):
    """Raises a DataError if a label map has another size than its image as loaded.

    Resizing both to one size would hide that, and train on labels of other places.
    """

    def transform(self, results: dict) -> dict:
        """Changes nothing."""
        label_map, shape = results.get('gt_seg_map'), results.get('ori_shape')
        if label_map is not None and shape is not None and label_map.shape[:2] != tuple(shape):
            size, wanted = (f'{side[1]} x {side[0]} px' for side in (label_map.shape, shape))
            raise DataError(
                f'the label map has {size}, but its image {results.get("img_path")} {wanted}',
                results.get('seg_map_path') or '',
                'write the map for the image, turned as its EXIF tag turns it',
            )
        return results


@TRANSFORMS.register_module()
class LoadMaskAnnotations(mmcv.transforms.BaseTransform):
    """Loads the mask of an image of mmseg's ``BaseSegDataset`` as labels 0 and 1, and checks it."""

    def transform(self, results: dict) -> dict:
        """Adds ``gt_seg_map`` (H, W)."""
        results['gt_seg_map'] = read_binary_mask(results['seg_map_path'])
        results['seg_fields'].append('gt_seg_map')
        return CheckLabelMap().transform(results)


@TRANSFORMS.register_module()
class DropEmptyBoxes(mmcv.transforms.BaseTransform):
    """Drops boxes that no loss can use, with everything that belongs to them.

    These are boxes without width or height (their regression target is -inf, and the loss NaN),
    with a coordinate that is not finite, or completely outside the image (``Resize`` clips these to
    no size).
    """

    def transform(self, results: dict) -> dict:
        """Shortens ``gt_bboxes`` (N, 4), the other ``gt_*`` of each box, and ``instances``."""
        boxes = results.get('gt_bboxes')
        if boxes is None:
            return results
        corners = boxes if isinstance(boxes, np.ndarray) else boxes.tensor.numpy()
        if corners.ndim == 2 and corners.shape[1] != 4:  # rotated boxes and the like
            return results
        corners = corners.reshape(-1, 4)
        x1, y1, x2, y2 = corners.T
        height, width = results.get('ori_shape') or (np.inf, np.inf)
        keep = np.isfinite(corners).all(1) & (x2 > x1) & (y2 > y1)
        keep &= (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0)
        if keep.all():
            return results
        for key in _OF_EACH_BOX & results.keys():
            results[key] = results[key][np.flatnonzero(keep)]
        if len(results.get('instances') or ()) == len(keep):
            results['instances'] = [*compress(results['instances'], keep)]
        return results


def is_known_loader(step: Any) -> bool:
    """Whether a step loads images as :class:`LoadImageFromFile` does, and is not the user's own."""
    return type_name(step) in {*_LOADERS, f'{SCOPE}.LoadImageFromFile'}


def loader_of(pipeline: Sequence) -> LoadImageFromFile:
    """Loads images as the configs of a pipeline say, in the type that they are stored in."""
    step = next(filter(is_known_loader, pipeline), {})
    return LoadImageFromFile(**{key: step[key] for key in _LOADER_OPTIONS if key in step})


def truncation(content: bytes) -> str | None:
    """Why an image file's bytes are not a whole file, as far as JPEG and PNG show it; else None.

    The segments of a JPEG are followed from its start, so that neither a thumbnail's end marker nor
    bytes after the image count.
    """
    if not content:
        return 'empty (0 bytes)'
    if content.startswith(_PNG_START) and _PNG_END not in content:
        return 'truncated: its PNG data has no IEND chunk'
    if not content.startswith(_JPEG_START):
        return None
    position = 2
    while marker := _JPEG_MARKER.search(content, position):
        kind, position = marker[1][0], marker.end()
        if kind == _JPEG_END:
            return None
        position += int.from_bytes(content[position : position + 2], 'big')  # the segment's length
    return 'truncated: its JPEG data has no end-of-image marker'


def harden_pipeline(
    pipeline: Sequence, drop_empty: bool = True, alternatives: bool = False
) -> list:
    """A copy of a pipeline that loads images with our :class:`LoadImageFromFile` and, after
    ``LoadAnnotations``, drops empty boxes and compares the sizes of image and label map.

    Covers pipelines inside transforms (``MultiBranch``, ``RandomApply``, ``TestTimeAug``, ...). A
    step that is already there is not added again.

    Args:
        pipeline: Configs of transforms; transforms that are built already stay as they are.
        drop_empty: False if the boxes are ground truth to be measured by.
        alternatives: Whether only one of them is used, so that one more would be another choice.
    """
    present = {type_name(step).rpartition('.')[2] for step in pipeline}
    hardened = []
    for step in pipeline:
        scope, _, name = type_name(step).rpartition('.')
        if isinstance(step, list | tuple):
            step = type(step)(harden_pipeline(step, drop_empty, alternatives))
        elif isinstance(step, Mapping):
            step = copy.deepcopy(step)
            for key, value in step.items():
                if isinstance(value, list | tuple):
                    parts = harden_pipeline(value, drop_empty, name in _ALTERNATIVES)
                    step[key] = type(value)(parts)
            if type_name(step) in _LOADERS:
                step['type'] = f'{SCOPE}.LoadImageFromFile'
        hardened.append(step)
        if alternatives or name not in ('LoadAnnotations', 'LoadPanopticAnnotations'):
            continue
        shared = scope in ('', 'mmcv')
        detection = scope == 'mmdet' or (shared and 'PackDetInputs' in present)
        segmentation = scope == 'mmseg' or (shared and 'PackSegInputs' in present)
        panoptic = name == 'LoadPanopticAnnotations'
        boxes = drop_empty and not panoptic and step.get('with_bbox', detection)
        maps = panoptic or step.get('with_seg', segmentation)
        for wanted, check in ((boxes, 'DropEmptyBoxes'), (maps, 'CheckLabelMap')):
            if wanted and check not in present:
                hardened.append({'type': f'{SCOPE}.{check}'})
                present.add(check)
    return hardened


def harden_dataset(dataset: Mapping) -> dict:
    """A copy of a dataset's config with every pipeline in it hardened, wrappers included.

    Replaces mmdet's VOC datasets by ours, which read annotation files on which theirs fail.
    Datasets in ``test_mode`` keep their empty boxes: ground truth is not altered.
    """
    if not isinstance(dataset, Mapping):  # built already
        return dataset
    new = copy.deepcopy(dataset)
    if 'pipeline' in dataset:
        new['pipeline'] = harden_pipeline(dataset['pipeline'], not dataset.get('test_mode', False))
    if 'dataset' in dataset:
        new['dataset'] = harden_dataset(dataset['dataset'])
    if 'datasets' in dataset:
        new['datasets'] = [harden_dataset(part) for part in dataset['datasets']]
    scope, _, name = type_name(dataset).rpartition('.')
    if name in ('VOCDataset', 'XMLDataset') and scope in ('', 'mmdet'):
        new['type'] = f'{SCOPE}.data.voc_dataset.{name}'
    return new


def _flat(error: Exception) -> str:
    return ' '.join(str(error).split())
