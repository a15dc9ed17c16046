"""AP by the rules of the Pascal VOC development kit, one detection after the other."""

from fractions import Fraction

import numpy as np


def overlap(a, b):
    """IoU of two boxes whose corners are pixels that belong to them."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    sizes = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return width * height / (sum(sizes) - width * height)


def devkit_ap(images, mode, iou_thr=0.5):
    """AP by the development kit's rules, one detection after the other, in fractions."""
    total = sum(not flag for _, _, flags in images for flag in flags)
    detections = [(d[4], i, d[:4]) for i, (found, _, _) in enumerate(images) for d in found]
    detections.sort(key=lambda d: -d[0])
    taken, hits, wrong, curve = set(), 0, 0, []
    for _, i, box in detections:
        _, boxes, flags = images[i]
        overlaps = [overlap(box, other) for other in boxes]
        most = max(overlaps, default=0.0)
        j = overlaps.index(most) if overlaps else None
        if most < iou_thr:
            wrong += 1
        elif flags[j]:
            pass
        elif (i, j) in taken:
            wrong += 1
        else:
            taken.add((i, j))
            hits += 1
        if hits + wrong:
            curve.append((Fraction(hits, total), Fraction(hits, hits + wrong)))
    if mode == '11points':
        steps = [Fraction(k, 10) for k in range(11)]
        best = [max((p for r, p in curve if r >= step), default=Fraction(0)) for step in steps]
        return float(sum(best) / 11)
    area, last = Fraction(0), Fraction(0)
    for i, (recall, _) in enumerate(curve):
        area += (recall - last) * max(p for _, p in curve[i:])
        last = recall
    return float(area)


def voc_set(seed, images=5):
    """For each of 3 classes, images of detections (N, 5), objects (M, 4) and difficult (M,)."""
    rng = np.random.default_rng(seed)
    classes = []
    for _ in range(3):
        made = []
        for _ in range(images):
            corner, size = rng.uniform(0, 200, (5, 2)), rng.uniform(10, 60, (5, 2))
            boxes = np.hstack([corner, corner + size]).astype(np.float32)
            near = np.repeat(boxes, 2, 0) + rng.normal(0, 4, (10, 4)).astype(np.float32)
            far = boxes[:3] + 300
            found = np.vstack([near, far])
            scores = rng.permutation(len(found)) / 97 + rng.random() / 1e4
            made.append((np.column_stack([found, scores]), boxes, rng.random(5) < 0.3))
        classes.append(made)
    return classes
