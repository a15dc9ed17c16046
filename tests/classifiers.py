"""A tiny folder of class folders, and a config that trains on it in seconds."""

from pathlib import Path

import cv2
import numpy as np

COLOURS = {'blue': (200, 40, 40), 'green': (40, 200, 40), 'red': (40, 40, 200)}  # B, G, R

CONFIG = """
_base_ = '{repo}/configs/res2net14_cells.py'
model = dict(backbone=dict(base_channels=8, stem_channels=8, base_width=4),
             head=dict(in_channels=256))
data = dict(data_root='{data}')
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = dict(batch_size=3, num_workers=0, persistent_workers=False, dataset=data)
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1))
"""


def write_folders(root: Path, train: int = 4, val: int = 2, size: tuple[int, int] = (40, 56)):
    """Images of noise in the colour of their class."""
    random = np.random.default_rng(0)
    for split, count in (('train', train), ('val', val)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(colour, 30, (*size, 3)).clip(0, 255).astype(np.uint8)
                assert cv2.imwrite(str(folder / f'{i}.png'), pixels)
    return root


def write_config(folder: Path, data: Path) -> Path:
    """The config file."""
    repo = Path(__file__).resolve().parents[1]
    (folder / 'tiny.py').write_text(CONFIG.format(repo=repo, data=data))
    return folder / 'tiny.py'
