"""Keypoints of the persons in a user's own images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import VISUALIZERS

from ..checks import listed
from ..data.errors import DataError
from .config import first_dataset, of_test_data, require
from .errors import ToolError, building_config, one_line
from .infer import ConfiguredModel


def configured_model(
    cfg: Config, *args: Any, boxes: str | None = None, **kwargs: Any
) -> ConfiguredModel:
    """A :class:`ConfiguredModel`; for mmpose a :class:`PoseModel`, which ``boxes`` are for."""
    if cfg.get('default_scope') == 'mmpose':
        return PoseModel(cfg, *args, boxes=boxes, **kwargs)
    if boxes is not None:
        raise ToolError('--boxes is for pose estimators, and this model is none')
    return ConfiguredModel(cfg, *args, **kwargs)


class PoseModel(ConfiguredModel):
    """A top-down pose estimator of mmpose.

    ``boxes`` is the ``predictions.json`` of a detector for the same images, whose objects named
    ``person`` count; None takes each image as one person.
    """

    def __init__(self, cfg: Config, *args: Any, boxes: str | None, **kwargs: Any) -> None:
        from mmpose.datasets.datasets.utils import parse_pose_metainfo

        super().__init__(cfg, *args, **kwargs)
        meta = of_test_data(cfg, 'metainfo') or first_dataset(cfg).cls.METAINFO
        self.meta = parse_pose_metainfo(meta)
        require(cfg, 'drawing skeletons', 'visualizer')
        with building_config('visualizer'):
            self.visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=[]))
        self.visualizer.set_dataset_meta(self.meta)
        self.classes = ['person']
        self.boxes = None if boxes is None else _read_boxes(Path(boxes))

    def inputs(self, image: Path | np.ndarray) -> list[dict[str, Any]]:
        """The box (1, 4) of each person, its score, and what the data set says of keypoints."""
        if self.boxes is None:
            pixels = image if isinstance(image, np.ndarray) else self.pixels(image)
            rows = [(0, 0, *pixels.shape[1::-1], 1)]
        elif isinstance(image, np.ndarray):
            raise DataError('--boxes is for images, and this is a frame of a video')
        elif (rows := self.boxes.get(os.path.realpath(image))) is None:
            raise DataError(f'image {image} is not in the file of --boxes')
        # a batch needs an input: one of score 0, which `run` drops
        rows = np.array(rows or [(0, 0, 1, 1, 0)], np.float32)[:, None]
        return [dict(self.meta, bbox=row[:, :4], bbox_score=row[:, 4]) for row in rows]

    @torch.no_grad()
    def run(self, batch: dict[str, Any]) -> Any:
        """One data sample with all persons."""
        from mmpose.structures import merge_data_samples

        sample = merge_data_samples(self.model.test_step(batch))
        sample.pred_instances = sample.pred_instances[sample.pred_instances.bbox_scores > 0]
        return sample

    def draw(self, pixels: np.ndarray, sample: Any, threshold: float) -> np.ndarray:
        """Pixels with the skeletons, of keypoints with at least this score."""
        return self.visualizer.add_datasample(
            'persons', pixels, sample.cpu(), draw_gt=False, draw_bbox=True, kpt_thr=threshold
        )

    def _instances(self, predicted: Any, threshold: float) -> Iterator[dict[str, Any]]:
        """All persons, with x, y and score of all keypoints."""
        points = np.dstack([predicted.keypoints, predicted.keypoint_scores])
        for box, score, rows in zip(predicted.bboxes, predicted.bbox_scores, points, strict=True):
            box, rows = (np.round(array.astype(float), 3).tolist() for array in (box, rows))
            yield dict(label=0, name='person', score=float(score), bbox=box, keypoints=rows)


def _read_boxes(file: Path) -> dict[str, list[list[float]]]:
    """x1, y1, x2, y2 and score of the persons, by the real path of their image."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        records, classes = content['images'], content['classes']
        boxes = {
            os.path.realpath(record['file']): [
                [*found['bbox'], found['score']]
                for found in record['instances']
                if found['name'] == 'person'
            ]
            for record in records
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ToolError(
            f'--boxes {file} is no predictions.json of a detector: {one_line(error)}'
        ) from error
    if 'person' not in classes:
        raise ToolError(f'--boxes {file} has no class person, but {listed(classes)}')
    return boxes
