"""Trains a small Res2Net Faster R-CNN on a synthetic set, measures it and draws predictions."""

import argparse
import time
from pathlib import Path
from typing import Any

from ctrl_c import run_tool

CONFIG = 'faster_rcnn_r2n14_shapes.py'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='example: python tools/demo.py --work-dir work_dirs/demo'
    )
    parser.add_argument('--config', default=CONFIG, help='config for this set (%(default)s)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--train', type=int, default=1500, help='images to train on')
    parser.add_argument('--val', type=int, default=200, help='unseen images to measure on')
    parser.add_argument('--epochs', type=int, help="instead of the config's")
    args = parser.parse_args()

    from res2net_mm.data import make_shapes
    from res2net_mm.data.check.inspection import check_data
    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.evaluate import run_test
    from res2net_mm.engine.infer import ConfiguredModel, predict_images
    from res2net_mm.engine.processes import hold_folder
    from res2net_mm.engine.report import describe_run
    from res2net_mm.engine.run_page import PAGE, note_run
    from res2net_mm.engine.runner import build_runner, prepare_config
    from res2net_mm.engine.sources import find_images
    from res2net_mm.engine.watching import watch_run
    from res2net_mm.evaluation.tables import format_metrics

    load_config(args.config, _options(args))  # fails before the work if an argument is wrong
    print(make_shapes(args.work_dir / 'shapes', train=args.train, val=args.val))
    cfg = prepare_config(load_config(args.config, _options(args)), work_dir=str(args.work_dir))
    summaries = check_data(cfg)
    lines = '\n'.join([*watch_run(cfg, summaries), describe_run(cfg, summaries)])
    print(lines, flush=True)
    start = time.monotonic()
    runner = build_runner(cfg)
    with hold_folder(cfg.work_dir):
        note_run(cfg, lines)
        runner.train()
    minutes = (time.monotonic() - start) / 60

    checkpoint = args.work_dir / f'epoch_{runner.max_epochs}.pth'
    cfg = prepare_config(load_config(args.config, _options(args)), work_dir=str(args.work_dir))
    metrics, classes = run_test(cfg, str(checkpoint))
    table = format_metrics(metrics, classes)
    (args.work_dir / 'metrics.txt').write_text(f'{table}\n')
    images = find_images(args.work_dir / 'shapes' / 'val')[:24]
    pictures = args.work_dir / 'predictions'
    predict_images(ConfiguredModel(cfg, str(checkpoint)), images, pictures, threshold=0.5)

    print(f'\n{table}\n')
    print(f'predictions drawn: {pictures}')
    print(f'report: {args.work_dir / PAGE}')
    print(f'checkpoint: {checkpoint}')
    print(f'table: {args.work_dir / "metrics.txt"}')
    print(f'training took {minutes:.1f} minutes')
    print(f'bbox mAP {metrics.get("coco/bbox_mAP", 0):.3f}')


def _options(args: argparse.Namespace) -> dict[str, Any]:
    root = f'{args.work_dir / "shapes"}/'
    options = {f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')}
    options['train_cfg.val_interval'] = 1  # so that the report shows a curve
    for split in ('val', 'test'):
        options[f'{split}_evaluator.ann_file'] = f'{root}annotations/instances_val.json'
    if args.epochs:
        options.update(
            {'train_cfg.max_epochs': args.epochs, 'param_scheduler.1.T_max': args.epochs}
        )
    return options


if __name__ == '__main__':
    run_tool(main)
