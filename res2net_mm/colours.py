"""One colour for each class, the same in every picture and page."""

from __future__ import annotations

import colorsys

_TONES = ((0.85, 0.95), (0.95, 0.65), (0.45, 1.0))  # saturation and value
_FIRST, _RANGE = 0.08, 0.84  # hues without red, which marks faults


def class_colours(count: int) -> list[tuple[int, ...]]:
    """An RGB colour for each label: always the same, and neighbours differ most in hue."""
    return [class_colour(label) for label in range(count)]


def class_colour(label: int) -> tuple[int, ...]:
    """The RGB colour of a label, 0 to 255 each."""
    hue, tone = _FIRST + _RANGE * (label * 0.618034 % 1), _TONES[label // 8 % len(_TONES)]
    return tuple(round(255 * share) for share in colorsys.hsv_to_rgb(hue, *tone))
