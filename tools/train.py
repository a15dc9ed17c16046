"""Trains a model of an mmdet or mmseg config, on the config's data or on your own."""

from contextlib import ExitStack

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser, use_device

EXAMPLE = """example:
  python tools/train.py configs/faster_rcnn_r2n50.py --work-dir work_dirs/r2n50
  python tools/train.py faster_rcnn_r2n50 --data my_photos/ --epochs 24 --batch 4
  torchrun --nproc_per_node 8 tools/train.py configs/faster_rcnn_r2n50.py --launcher pytorch
"""


def main() -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'config', '--data', '--data-format', '--classes', '--ignore-label')
    add_shared(parser, '--epochs', '--batch', '--size', '--device')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='resume exactly from this checkpoint, or from the latest in the work dir',
    )
    parser.add_argument(
        '--from-scratch', action='store_true', help='random weights, nothing frozen'
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision (bfloat16 on a CPU)'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch'
    )
    add_shared(parser, '--early-stop', '--log', '--launcher', '--trust-checkpoint', '--cfg-options')
    args = parser.parse_args()
    use_device(args.device)

    from mmengine.dist import is_main_process

    from res2net_mm.data.check.inspection import check_data
    from res2net_mm.engine.adapting import adapt
    from res2net_mm.engine.checkpoints import check_new_run
    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.processes import hold_folder, on_first_rank, start_processes
    from res2net_mm.engine.report import describe_run, keep_memory
    from res2net_mm.engine.run_page import note_run
    from res2net_mm.engine.runner import build_runner, check_weights, prepare_config
    from res2net_mm.engine.watching import watch_run

    keep_memory()
    cfg = load_config(args.config, args.cfg_options)
    start_processes(cfg, args.launcher)
    said = adapt(cfg, args)
    if said and is_main_process():
        print(*said, sep='\n', flush=True)
    cfg = prepare_config(
        cfg,
        work_dir=args.work_dir,
        launcher=args.launcher,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        resume=args.resume,
        from_scratch=args.from_scratch,
        trust=args.trust_checkpoint,
    )
    on_first_rank(check_new_run, cfg)
    check_weights(cfg)
    summaries = on_first_rank(check_data, cfg)
    changes = watch_run(cfg, summaries, args.early_stop, args.log, args.cfg_options)
    lines = '\n'.join([*changes, on_first_rank(describe_run, cfg, summaries)])
    if is_main_process():
        print(lines, flush=True)
    with ExitStack() as stack:
        on_first_rank(lambda: stack.enter_context(hold_folder(cfg.work_dir)))
        on_first_rank(note_run, cfg, lines)
        build_runner(cfg, args.trust_checkpoint).train()


if __name__ == '__main__':
    run_tool(main)
