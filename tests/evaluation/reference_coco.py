"""COCO's evaluation by pycocotools."""

import contextlib
import copy
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def pycocotools_eval(annotations, results, kind, max_dets, iou_thrs=None, images=None, use_cats=1):
    """The run of a COCOeval, summarised."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        run.params.maxDets, run.params.useCats = list(max_dets), use_cats
        if images is not None:
            run.params.imgIds = images
        if iou_thrs is not None:
            run.params.iouThrs = np.array(iou_thrs)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run
