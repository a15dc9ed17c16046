"""Measures a checkpoint on the test split of its config and prints a table."""

from collections.abc import Sequence
from functools import partial

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser, use_device

EXAMPLE = """example:
  python tools/test.py configs/faster_rcnn_r2n50.py work_dirs/r2n50/epoch_12.pth --out results.json
  python tools/test.py configs/faster_rcnn_r2n50.py work_dirs/r2n50/epoch_12.pth --fast
  python tools/test.py configs/faster_rcnn_r2n50.py work_dirs/r2n50/epoch_12.pth --tta
  python tools/test.py configs/faster_rcnn_r2n50.py detector.xml
"""
TTA = 'with --tta: predictions for mirrored and resized images, merged'


def main() -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'config', 'checkpoint')
    parser.add_argument('--work-dir', help='folder for the log')
    parser.add_argument('--out', metavar='RESULTS.json', help='write COCO results')
    parser.add_argument('--show-dir', help='draw predictions beside the ground truth')
    parser.add_argument(
        '--tta', action='store_true', help='merge predictions on mirrored and resized images'
    )
    parser.add_argument(
        '--conf',
        type=float,
        metavar='SCORE',
        help='leave out objects with a lower score, 0 to 1, from figures and pictures',
    )
    add_shared(parser, '--fast', '--compile')
    add_shared(parser, '--device', '--launcher', '--trust-checkpoint', '--cfg-options')
    args = parser.parse_args()
    use_device(args.device)

    from mmengine.dist import is_main_process

    from res2net_mm.data.check.inspection import check_data
    from res2net_mm.data.check.survey import format_summary
    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.evaluate import fast_options, run_test
    from res2net_mm.engine.processes import on_first_rank
    from res2net_mm.engine.report import describe_device, keep_memory
    from res2net_mm.engine.runner import prepare_config

    fast = fast_options(args)
    notes = [TTA] if args.tta else []
    if args.conf is not None:
        notes.append(f'objects from a score of {args.conf} on: AP is lower than without --conf')
    keep_memory()
    cfg = load_config(args.config, args.cfg_options)
    cfg.load_from, cfg.resume = None, False  # the training run's, in a config that it wrote
    cfg = prepare_config(cfg, work_dir=args.work_dir, launcher=args.launcher)
    summaries = on_first_rank(check_data, cfg, splits=('test',))
    if is_main_process():
        print(f'{describe_device()}\n{format_summary(summaries)}', flush=True)
    run_test(
        cfg,
        args.checkpoint,
        out=args.out,
        show_dir=args.show_dir,
        trust=args.trust_checkpoint,
        fast=fast,
        tta=args.tta,
        conf=args.conf,
        report=partial(print_figures, notes=notes),
    )


def print_figures(metrics: dict[str, float], classes: list[str], notes: Sequence[str] = ()) -> None:
    """Prints the metrics as tables, with notes under them."""
    from res2net_mm.evaluation.tables import format_metrics

    text = format_metrics(metrics, classes) or 'the evaluator of the config gave no figures'
    print(text, *notes, sep='\n', flush=True)


if __name__ == '__main__':
    run_tool(main)
