"""The command line that the tools share. It imports nothing that makes --help slow."""

from __future__ import annotations

import argparse
import os
from typing import Any

CAM_METHODS = ('gradcam', 'eigencam')  # of explain.py
# of --log: mmengine's backend, and the package that it needs
BACKENDS = {
    'tensorboard': ('TensorboardVisBackend', 'tensorboard'),
    'wandb': ('WandbVisBackend', 'wandb'),
    'mlflow': ('MLflowVisBackend', 'mlflow'),
}


class ConfigOptions(argparse.Action):
    """mmengine's action for ``KEY=VALUE``, but with an error that argparse shows."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        from mmengine.config import DictAction

        try:
            DictAction(self.option_strings, self.dest)(*args, **kwargs)
        except (AssertionError, RecursionError, ValueError) as error:  # no =, or odd brackets
            raise argparse.ArgumentError(self, 'each must be KEY=VALUE') from error


_SHARED = {
    'config': dict(help='config file, or the name of one of this package'),
    'checkpoint': dict(help='weights of the whole model'),
    'results': dict(help='COCO results json, such as test.py --out writes'),
    'annotations': dict(help='COCO annotation json'),
    '--metric': dict(choices=['bbox', 'segm'], default='bbox'),
    '--images-with-results': dict(
        action='store_true',
        help='score only images that have a detection, for results from some of the images',
    ),
    '--launcher': dict(choices=['none', 'pytorch', 'slurm', 'mpi'], default='none'),
    '--trust-checkpoint': dict(
        action='store_true', help='read the checkpoint with pickle, which runs any code in it'
    ),
    '--cfg-options': dict(
        nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config'
    ),
    '--data': dict(
        metavar='PATH',
        help='your images: a COCO, Pascal VOC, YOLO, labelme, mask or class folder, a data.yaml, '
        'or a yaml that names the parts',
    ),
    '--data-format': dict(
        choices=['coco', 'voc', 'yolo', 'labelme', 'masks', 'folders'],
        help='what --data is, if it could be several',
    ),
    '--classes': dict(nargs='+', metavar='NAME', help='in the order of the labels (as in --data)'),
    '--ignore-label': dict(type=int, metavar='N', help='value in masks that is no class'),
    '--epochs': dict(type=int, metavar='N', help='train so long; schedules stretch with it'),
    '--batch': dict(type=int, metavar='N', help='images of a step and device; scales the lr'),
    '--size': dict(type=int, nargs=2, metavar=('W', 'H'), help='resize images to this, in px'),
    '--device': dict(help='such as cpu or cuda:1 (the first GPU, else the CPU)'),
    '--early-stop': dict(
        type=int, metavar='N', help='stop after N validations without a better main measure'
    ),
    '--log': dict(nargs='+', choices=BACKENDS, default=(), help='log there too'),
    '--fast': dict(
        nargs='?',
        const='float32',
        choices=['float32', 'bfloat16', 'float16'],
        metavar='TYPE',
        help='run a form of the model made for inference: predictions are equal in float32 '
        '(default) and differ in bfloat16 or float16',
    ),
    '--compile': dict(
        nargs='?',
        const='default',
        choices=['default', 'reduce-overhead', 'max-autotune'],
        metavar='MODE',
        help="with --fast on a GPU: torch.compile backbone and neck; 'reduce-overhead' uses CUDA "
        'graphs. Each image size is compiled separately, up to 64; a larger '
        'model.data_preprocessor.pad_size_divisor in --cfg-options leaves fewer sizes',
    ),
}


def tool_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples, line breaks kept."""
    return argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_shared(parser: argparse.ArgumentParser, *names: str, **changes: str) -> None:
    """Adds arguments that several tools have, such as ``config`` or ``--data``.

    ``changes`` is what differs in this tool, such as ``help``.
    """
    if '--launcher' in names:  # python -m torch.distributed.launch adds it
        parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(name, **{**_SHARED[name], **changes})


def use_device(device: str | None) -> None:
    """Hides the devices that are not to be used; to be called before CUDA is.

    Raises:
        ValueError: The device is unknown, or not there.
    """
    if device is None:
        return
    kind, _, number = device.partition(':')
    if kind not in ('cuda', 'cpu') or (number and not (kind == 'cuda' and number.isdecimal())):
        raise ValueError(f'--device must be cuda, cuda:N or cpu, but is {device!r}')
    if kind == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        return
    if number:  # of those that are visible
        given = os.environ.get('CUDA_VISIBLE_DEVICES')
        seen = {int(number): number} if given is None else dict(enumerate(given.split(',')))
        os.environ['CUDA_VISIBLE_DEVICES'] = seen.get(int(number), '')
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f'--device {device} is not there: PyTorch sees no such CUDA device')
