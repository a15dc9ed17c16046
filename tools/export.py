"""Writes a trained model as a file that runs without PyTorch: ONNX, or OpenVINO's."""

import argparse
from functools import partial
from operator import le
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

if TYPE_CHECKING:
    from res2net_mm.backbones import Backbone

EXAMPLE = """example:
  python tools/export.py configs/faster_rcnn_r2n50.py epoch_12.pth detector.xml --shape 480 640
  python tools/export.py my_upernet.py iter_80000.pth upernet.onnx
  python tools/export.py res2net50_v1b_26w_4s res2net://res2net50_v1b_26w_4s r2n50.onnx --raw
"""


def main() -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument('config', metavar='CONFIG_OR_VARIANT', help='config or backbone name')
    parser.add_argument('checkpoint', help='weights of the whole model, or of a variant')
    parser.add_argument('out', metavar='OUT', help='file that ends in .onnx or .xml')
    size = parser.add_mutually_exclusive_group()
    padded = 'size that images are padded to; default for detectors: that of the test images'
    size.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help=padded)
    size.add_argument('--dynamic', action='store_true', help='leave height and width open')
    parser.add_argument('--raw', action='store_true', help='input: normalised float (N, C, H, W)')
    int8 = 'quantise to int8, calibrated on training images of the config'
    parser.add_argument('--int8', action='store_true', help=int8)
    count = 'how many images for --int8 (300)'
    parser.add_argument('--calibration', type=int, default=300, metavar='N', help=count)
    check = (
        'measure the file on the validation set, beside the float32 file for --int8 and else '
        'PyTorch; --int8 leaves more in float until AP falls by at most 0.005, mIoU, PQ and top-1 '
        'by 0.5'
    )
    parser.add_argument('--check', action='store_true', help=check)
    parser.add_argument('--backbone', action='store_true', help="only the model's backbone")
    add_shared(parser, '--trust-checkpoint')
    add_shared(parser, '--cfg-options', help="change the config, or the variant's arguments")
    args = parser.parse_args()

    from res2net_mm.data.errors import DataError
    from res2net_mm.deploy import export
    from res2net_mm.deploy.export import DETECTORS, check_path, refusal
    from res2net_mm.deploy.metadata import normalisation_of, resize_rule, test_size
    from res2net_mm.engine.classes import prediction_meta, warn
    from res2net_mm.engine.config import load_config, test_pipeline
    from res2net_mm.engine.errors import ToolError
    from res2net_mm.engine.exported import ExportedModule, facts_of
    from res2net_mm.engine.infer import load_model
    from res2net_mm.engine.quantising import ResizedImages, compare_figures, measure, write_int8

    path = check_path(args.out)
    if Path(args.checkpoint).resolve() == path.with_suffix('.bin'):
        raise ToolError(f'{args.checkpoint} is the checkpoint, and {path.name} would replace it')
    if args.int8 or args.check:
        _check_int8(args, path)
    print(f'loading {args.checkpoint}', flush=True)
    model, about, images, shape = _load_variant(args), {}, [], args.shape
    if model is None:
        cfg = load_config(args.config, args.cfg_options)
        if not cfg.get('model'):
            raise ToolError(f'config {args.config} has no model')
        model, loaded = load_model(cfg, args.checkpoint, args.trust_checkpoint)
        about = dict(config=Path(args.config).stem)
        if reason := None if args.backbone else refusal(model, args.dynamic):
            raise ToolError(f'{args.config} cannot be exported: {reason}')
        if args.backbone:
            about.update(normalisation_of(model, 3, {}))
            model = model.backbone
        else:
            about.update(resize=resize_rule(test_pipeline(cfg)))
            about.update(prediction_meta(cfg, loaded.get('meta')))
            try:
                images = [*ResizedImages(cfg, 20, 'test')]
            except (OSError, DataError, ToolError) as error:
                warn(f'the file is compared on made images only: {error}')
            if type(model).__name__ in DETECTORS and not (shape or args.dynamic):
                shape = test_size(about['resize'], images)
                if shape and len({image.shape for image in images}) > 1:
                    print(
                        f'note: images are padded to {shape[1]} x {shape[0]} px. PyTorch pads them '
                        'less, so their scores differ a little; with --dynamic they do not'
                    )
            if about['resize'] and hasattr(model, 'decode_head') and model.num_classes > 1:
                print(
                    'note: the label map is enlarged to the image pixel by pixel. PyTorch enlarges '
                    'scores, so labels at edges differ a little'
                )
            images = [i for i in images if not shape or all(map(le, i.shape, shape))]
    say = partial(print, flush=True)
    given = dict(raw=args.raw, images=images, about=about, progress=say)
    if not args.int8:
        say(export(model, path, shape, **given))
        if args.check:
            file = ExportedModule(path, facts_of(cfg.model))
            names = ('PyTorch', 'file')
            before, after = (measure(cfg, m, loaded.get('meta')) for m in (model, file))
            if not compare_figures(before, after, names, say):
                raise ToolError(
                    f'{path} was written, but loses too much of what PyTorch reaches: try --dynamic'
                )
        return
    training = ResizedImages(cfg, args.calibration)
    with TemporaryDirectory() as folder:
        source = Path(folder, 'float32.xml')
        say(str(export(model, source, shape, **given)).splitlines()[0])
        write_int8(cfg, source, path, training, args.check, say, loaded.get('meta'))
    say(f'written: {path}')


def _check_int8(args: argparse.Namespace, path: Path) -> None:
    from res2net_mm.backbones import VARIANTS
    from res2net_mm.deploy.int8 import require_nncf
    from res2net_mm.engine.errors import ToolError

    option = '--int8' if args.int8 else '--check'
    if args.backbone or args.raw or args.config in VARIANTS:
        raise ToolError(f'{option} needs the config of a whole model, and no --raw')
    if args.int8:
        require_nncf()
        if path.suffix != '.xml':
            raise ToolError(f'--int8 writes OpenVINO files: OUT must end in .xml, but is {path}')
        if args.calibration < 1:
            raise ToolError(f'--calibration must be at least 1, but is {args.calibration}')


def _load_variant(args: argparse.Namespace) -> 'Backbone | None':
    """The backbone with its weights; None if a config is named."""
    from mmengine.config import Config

    from res2net_mm.backbones import VARIANTS, Backbone
    from res2net_mm.checks import did_you_mean
    from res2net_mm.engine.errors import ToolError
    from res2net_mm.registry import MODELS, find_config
    from res2net_mm.weights import load_weights

    if args.config not in VARIANTS:
        if not (Path(args.config).suffix or find_config(args.config)):
            hint = did_you_mean(args.config, VARIANTS)
            raise ToolError(f'{args.config} is no variant and no config{hint}')
        return None
    given = Config({'type': 'Res2Net', **VARIANTS[args.config]})
    given.merge_from_dict(args.cfg_options or {})
    arguments = given.to_dict()
    kind = MODELS.get(arguments.pop('type'))
    if not (isinstance(kind, type) and issubclass(kind, Backbone)):
        raise ToolError('type of --cfg-options is no backbone of this package')
    net = kind(**arguments)
    print(load_weights(net, args.checkpoint, trust=args.trust_checkpoint), flush=True)
    return net


if __name__ == '__main__':
    run_tool(main)
