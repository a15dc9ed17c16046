"""What one synthetic scene promises."""

from __future__ import annotations

import numpy as np
import pytest

from res2net_mm.data.synthetic import scenes


@pytest.mark.parametrize('size', [(224, 224), (320, 240)])
def test_scenes_keep_their_promises(size):
    for seed in range(24):
        label, first_bin = seed % 4, list(scenes.SIZE_BINS)[seed % 3]
        scene = scenes.draw_scene(np.random.default_rng(seed), *size, label, first_bin)
        assert scene.image.shape == (size[1], size[0], 3) and scene.image.dtype == np.uint8
        assert scene.objects[0].label == label
        assert scenes.size_bin(scene.mask(0).sum()) == first_bin
        for index, thing in enumerate(scene.objects):
            visible = scene.mask(index).sum()
            assert thing.full_area / 2 <= visible <= thing.inside_area <= thing.full_area
            assert 12 <= max(scenes.tight_box(scene.mask(index))[2:]) <= 200
        assert scene.instances.max() == len(scene.objects)


@pytest.mark.parametrize(
    ('name', 'low', 'high'),
    [('disc', 0.6, 0.79), ('square', 0.4, 1), ('triangle', 0.3, 0.51), ('star', 0.2, 0.42)],
)
def test_shapes_cover_what_geometry_says(name, low, high):
    """Share of the longest side's square: pi / 4 for a disc, at most 1 for a square, and so on."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        outline = scenes._outline(rng, name)
        assert np.ptp(outline, axis=0).max() == pytest.approx(1)
        x, y = outline.T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert low < area < high
        # OpenCV fills the outline's own pixels too: about an eighth of one of ours all around.
        excess = scenes._rasterise(outline * 100).sum() - area * 100**2
        perimeter = np.linalg.norm(outline - np.roll(outline, 1, 0), axis=1).sum() * 100
        assert 0.05 < excess / perimeter < 0.17
