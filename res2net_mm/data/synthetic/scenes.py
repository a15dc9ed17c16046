"""Draws synthetic scenes: textured shapes that occlude each other on a textured background."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ..sets.images import COCO_SIZES as SIZE_BINS

CLASSES = ('disc', 'square', 'triangle', 'star')
SIDES = (12, 200)
MAX_OBJECTS = 8
MIN_VISIBLE = 0.5

_OVERHANG = 0.1  # share of its side by which an object may stick out of the image
_CONTRAST = 120.0  # least distance, of 0..441, between an object's colour and what it covers
_OVERLAPPING = 0.3  # share of the objects that may cover others
_TRIES = 40
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """What the visible pixels do not show."""

    label: int  # index into CLASSES
    full_area: int  # pixels of the whole shape
    inside_area: int  # pixels of it inside the image, hidden or not


@dataclass(frozen=True)
class Scene:
    """One image and the objects in it."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    instances: np.ndarray  # (H, W) uint8, 0 for the background, i + 1 where objects[i] is visible
    objects: list[SceneObject]  # from the backmost to the topmost

    def mask(self, index: int) -> np.ndarray:
        """The visible pixels of an object as (H, W) bool."""
        return self.instances == index + 1


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box around the true pixels as (x, y, width, height)."""
    return cv2.boundingRect(mask.astype(np.uint8))


def size_bin(area: float) -> str:
    """COCO's name for the size of an object with ``area`` pixels."""
    return next(name for name, (low, high) in SIZE_BINS.items() if low <= area < high)


def draw_scene(
    rng: np.random.Generator, width: int, height: int, label: int, first_bin: str
) -> Scene:
    """Draws one scene of 1 to ``MAX_OBJECTS`` objects.

    At least ``MIN_VISIBLE`` of each object's area and ``SIDES[0]`` px of its longest side are
    visible. Colours and textures do not depend on the class. ``label`` and ``first_bin``, a key of
    ``SIZE_BINS``, are of the first object; the others are random.
    """
    canvas = _background(rng, width, height)
    instances = np.zeros((height, width), np.uint8)
    objects: list[SceneObject] = []

    count = int(rng.integers(1, MAX_OBJECTS + 1, 2).max())  # 1 to 8, crowded scenes more often
    shapes = [(label, _draw_shape(rng, label, first_bin))]
    others = rng.integers(0, len(CLASSES), count - 1).tolist()
    rest = [(i, _draw_shape(rng, i, None)) for i in others]
    # Large ones tend to be drawn first: in a random order they would hide small ones, be rejected,
    # and be missing from crowded images.
    order = np.argsort([-a.shape[0] * math.exp(rng.normal(0, 0.5)) for _, a in rest])
    shapes += [rest[i] for i in order]

    for cls, alpha in shapes:
        placed = _place(rng, alpha, instances, objects, first_bin)
        if placed is None:  # never the first one
            continue
        inside, x, y = placed
        rows, cols = slice(y, y + inside.shape[0]), slice(x, x + inside.shape[1])
        _paint(rng, canvas[rows, cols], inside)
        instances[rows, cols][inside >= 0.5] = len(objects) + 1
        objects.append(SceneObject(cls, int((alpha >= 0.5).sum()), int((inside >= 0.5).sum())))

    canvas += rng.standard_normal(canvas.shape, np.float32) * 3
    return Scene(np.clip(canvas, 0, 255).round().astype(np.uint8), instances, objects)


def _outline(rng: np.random.Generator, name: str) -> np.ndarray:
    """A rotated and squeezed outline of the class, (N, 2); its box has a longest side of 1."""
    corners = {'disc': 72, 'square': 4, 'triangle': 3, 'star': 10}[name]
    radii = np.ones(corners)
    if name == 'star':
        radii[::2] = rng.uniform(0.38, 0.45)
    # The half step aligns a square's sides with the axes, so that squeezing makes a rectangle.
    angles = (np.arange(corners) + 0.5) * (2 * np.pi / corners)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    points[:, 0] *= rng.uniform(0.8, 1)
    turn = rng.uniform(-0.3, 0.3)
    cos, sin = np.cos(turn), np.sin(turn)
    points = points @ np.array([[cos, -sin], [sin, cos]])
    points -= (points.max(0) + points.min(0)) / 2
    return points / np.ptp(points, axis=0).max()


def _draw_shape(rng: np.random.Generator, label: int, in_bin: str | None) -> np.ndarray:
    """Coverage 0..1 of a shape of random size on its own square canvas, (S, S) float32."""
    # A margin inside the bin, since a little less ends up visible.
    low, high = SIZE_BINS[in_bin] if in_bin else (0, math.inf)
    while True:
        outline = _outline(rng, CLASSES[label])
        side = rng.uniform(*np.sqrt(SIDES)) ** 2
        area = cv2.contourArea(outline.astype(np.float32)) * side**2
        if not 1.15 * low <= area < high:
            continue
        alpha = _rasterise(outline * side)
        mask = alpha >= 0.5
        if SIDES[0] <= max(tight_box(mask)[2:]) <= SIDES[1] and mask.sum() < high:
            return alpha


def _rasterise(outline: np.ndarray) -> np.ndarray:
    """The share of each pixel that a centred outline in px covers."""
    side = math.ceil(np.ptp(outline, axis=0).max()) + 2
    fine = np.zeros((side * _SUPERSAMPLING,) * 2, np.uint8)
    points = (outline + side / 2) * _SUPERSAMPLING - 0.5
    cv2.fillPoly(fine, [np.round(points * 16).astype(np.int32)], 255, shift=4)
    return cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _place(
    rng: np.random.Generator,
    alpha: np.ndarray,
    instances: np.ndarray,
    objects: list[SceneObject],
    first_bin: str,
) -> tuple[np.ndarray, int, int] | None:
    """Looks for a place where every rule of ``draw_scene`` holds.

    Returns the part of ``alpha`` inside the image and its upper left corner there, or None.
    """
    height, width = instances.shape
    side = alpha.shape[0]
    over = int(side * _OVERHANG)
    full = (alpha >= 0.5).sum()
    apart = rng.random() >= _OVERLAPPING
    for _ in range(_TRIES):
        left = int(rng.integers(-over, width - side + over + 1))
        top = int(rng.integers(-over, height - side + over + 1))
        x, y = max(left, 0), max(top, 0)
        inside = alpha[y - top : height - top, x - left : width - left]
        mask = inside >= 0.5
        if apart and instances[y : y + mask.shape[0], x : x + mask.shape[1]][mask].any():
            continue
        after = instances.copy()
        after[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = len(objects) + 1
        areas = np.bincount(after.ravel(), minlength=len(objects) + 2)[1:]
        if (areas < MIN_VISIBLE * np.array([o.full_area for o in objects] + [full])).any():
            continue
        if size_bin(areas[0]) != first_bin:
            continue
        if all(max(tight_box(after == i + 1)[2:]) >= SIDES[0] for i in range(len(areas))):
            return inside, x, y
    return None


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Low-contrast texture, blotches and thin lines as (H, W, 3) float32."""
    base = rng.uniform(40, 215, 3).astype(np.float32)
    kind = rng.choice(['stripes', 'noise', 'gradient'])
    canvas = _smooth_noise(rng, height, width, 5, 3) * 25
    canvas += _smooth_noise(rng, height, width, 48, 1)[..., None] * rng.uniform(0, 20)
    texture = _texture(rng, kind, height, width)[..., None]
    canvas += base + texture * rng.uniform(-25, 25, 3).astype(np.float32)
    for _ in range(rng.integers(0, 6)):
        ends = rng.integers(0, (width, height), (2, 2)).tolist()
        colour = rng.uniform(0, 255, 3).tolist()
        cv2.line(canvas, *ends, colour, int(rng.integers(1, 4)))
    return canvas


def _paint(rng: np.random.Generator, patch: np.ndarray, alpha: np.ndarray) -> None:
    """Blends a random texture into a view of the canvas, in colours that differ from it."""
    beneath = patch[alpha >= 0.5].mean(0)
    candidates = rng.uniform(0, 255, (32, 3)).astype(np.float32)
    distance = np.linalg.norm(candidates - beneath, axis=1)
    # The first two that are far enough: a random pair, not the two farthest.
    first, second = candidates[np.argsort(distance < _CONTRAST, kind='stable')[:2]]
    kind = rng.choice(['flat', 'stripes', 'checker', 'noise', 'gradient'])
    mix = _texture(rng, kind, *alpha.shape)[..., None] * rng.uniform(0.15, 0.5)
    patch += alpha[..., None] * (first + mix * (second - first) - patch)


def _texture(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """A pattern with values 0..1, (H, W) float32."""
    if kind == 'flat':
        return np.zeros((height, width), np.float32)
    if kind == 'noise':
        return _smooth_noise(rng, height, width, int(rng.integers(4, 20)), 1) / 2 + 0.5
    turn = rng.uniform(0, np.pi)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)
    u = x * math.cos(turn) + y * math.sin(turn)
    v = y * math.cos(turn) - x * math.sin(turn)
    if kind == 'gradient':
        return (u - u.min()) / np.ptp(u)
    period = rng.uniform(5, max(10, min(height, width) / 3))
    waves = np.sin(u * (2 * math.pi / period))
    if kind == 'checker':
        waves = waves * np.sin(v * (2 * math.pi / period))
    # Edges are steep but not hard, about a pixel wide.
    return np.clip(waves * period / 6 + 0.5, 0, 1)


def _smooth_noise(
    rng: np.random.Generator, height: int, width: int, cells: int, channels: int
) -> np.ndarray:
    """Interpolated noise in -1..1, ``cells`` blotches per side: (H, W) or (H, W, channels)."""
    grid = rng.uniform(-1, 1, (cells, cells, channels)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
