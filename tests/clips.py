"""Small videos of a moving square."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS = 160, 120, 25


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Grey with a white square that moves to the right, one pixel a frame."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[40:60, index : index + 20] = 255
    return pixels


def write_clip(file: Path, count: int, codec: str = 'libx264', **size: int) -> Path:
    options = dict(movflags='+faststart') if file.suffix == '.mp4' else {}
    with av.open(str(file), 'w', options=options) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.pix_fmt = 'rgb8' if codec == 'gif' else 'yuv420p'
        stream.height, stream.width = picture(0, **size).shape[:2]
        if codec == 'libx264':
            stream.options = dict(g='10')
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index, **size), 'rgb24')
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return file
