"""What make demo trains."""

from argparse import Namespace
from pathlib import Path

from demo import CONFIG, _options

from res2net_mm.engine.config import load_config


def test_every_epoch_is_measured():
    """Else the report's chart has one point."""
    args = Namespace(work_dir=Path('w'), epochs=3)
    cfg = load_config(CONFIG, _options(args))
    assert (cfg.train_cfg.val_interval, cfg.train_cfg.max_epochs) == (1, 3)
