"""One model in PyTorch, onnxruntime and OpenVINO: what each way to run it costs (task ``deploy``).

Measured at each size: ``model``, from the pixels of one image to boxes or labels; ``end to end``,
from image files, decoded, resized and predicted in turn; ``two streams``, two images at a time with
half of the threads each; all in seconds an image. ``backbone`` is Res2Net-50 beside others, all in
OpenVINO. Files have a fixed size, as ``tools/export.py`` writes them by default, and images are
wider than high so that they fit. Before anything is timed, the ways that compute in float32 must
find the same scores.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from res2net_mm.data.transforms import LoadImageFromFile
from res2net_mm.deploy import export, optimize_for_inference
from res2net_mm.deploy.int8 import has_int8_instructions, quantize
from res2net_mm.deploy.running import ExportedModel, openvino_core
from res2net_mm.engine.config import load_config, our_backbones
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.exported import ExportedModule, facts_of
from res2net_mm.engine.infer import ConfiguredModel
from res2net_mm.engine.quantising import ResizedImages
from res2net_mm.engine.quantising import measure as figures_of
from res2net_mm.engine.sources import find_images

from .contenders import BUILDERS, DCN, VARIANT, make_state, normal_image, require
from .detectors import OURS as MAKER
from .detectors import build
from .measure import OwnProcess, interleave, make_record, own_process, peak_memory, seconds
from .networks import group_name, parse_sizes

EXPORT = importlib.import_module('res2net_mm.deploy.export')  # the function has its name
COMPARING = '_compare'  # its function that compares a file with PyTorch
MMDET, OURS = 'mmdet', 'ours'
FAST = {'ours folded': {}, 'ours compiled': dict(compile='default')}
FLOAT, INT8, BF16 = 'OpenVINO', 'OpenVINO int8', 'OpenVINO int8 bfloat16'
FILES = {'onnxruntime': 'model.onnx', FLOAT: 'model.xml', INT8: 'int8.xml', BF16: 'int8.xml'}
NETWORKS = {  # name: source, variant, and how it runs
    'mmdet': ('mmdet', VARIANT, 'PyTorch'),
    'ours folded': ('ours', VARIANT, 'folded'),
    FLOAT: ('ours', VARIANT, FLOAT),
    INT8: ('ours', VARIANT, INT8),
    f"timm's res2net50d, {FLOAT}": ('timm', VARIANT, FLOAT),
    f"torchvision's ResNet-50, {FLOAT}": ('resnet50', VARIANT, FLOAT),
    'ours DCN': ('ours', DCN, 'PyTorch'),
    'ours DCN folded': ('ours', DCN, 'folded'),
    f'DCN, {FLOAT}': ('ours', DCN, FLOAT),
}
MODEL, WHOLE, STREAMS = 'model', 'end to end', 'two streams'
CLOSE = 1e-3  # scores that differ by less are of the same object
BOUND = 0.03  # share of objects that only one way finds: rounding turns decisions of NMS
_WAY: list[Any] = []  # what this process measures


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """Adds the options of the task."""
    parser.add_argument('config', nargs='?', default='faster_rcnn_r2n50.py', help='of the model')
    text = 'its weights (random ones, for a Faster or Mask R-CNN)'
    parser.add_argument('--checkpoint', help=text)
    text = 'images, also in folders below it ($RES2NET_MM_DATA/coco_ccby)'
    parser.add_argument('--images', type=Path, metavar='FOLDER', help=text)
    parser.add_argument('--limit', type=int, default=8, metavar='N', help='images to take (8)')
    sizes = ['480x640', '800x1216']
    text = f'of the files, which images are resized to ({" ".join(sizes)})'
    parser.add_argument('--size', nargs='+', default=sizes, metavar='HxW', help=text)
    parser.add_argument('--compile', action='store_true', help='torch.compile too: takes minutes')
    text = 'measure the files and PyTorch on the validation set as well'
    parser.add_argument('--figures', action='store_true', help=text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the task."""
    if args.device != 'cpu':
        raise ToolError('deploy measures on the CPU: leave out --device')
    if args.figures and not args.checkpoint:
        raise ToolError('--figures needs the weights of a trained model: --checkpoint')
    if 'panoptic_fusion_head' in load_config(args.config).model:
        raise ToolError('deploy measures detectors, segmentors and classifiers')
    images = _images(args)
    rows = [row for size in parse_sizes(args.size) for row in _measure(args, size, images)]
    notes = [] if has_int8_instructions() else ['this processor has no VNNI instructions']
    return make_record(args, f'{Path(args.config).stem} in several runtimes', rows, None, notes)


def _measure(
    args: argparse.Namespace, size: tuple[int, int], images: list[Path]
) -> list[dict[str, Any]]:
    """The rows of one size."""
    cfg, rows, at = load_config(args.config), [], group_name(size, 1)
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint = Path(name), args.checkpoint
        cfg.model.backbone.init_cfg = None
        if checkpoint is None:
            cfg.model.backbone.first_block = 'mmdet'
            build(MAKER, args.config, images, folder, 'cpu')
            checkpoint = str(folder / 'weights.pth')
        for key in ('val_dataloader', 'test_dataloader'):
            for step in cfg[key].dataset.pipeline:
                if str(step.type).endswith('Resize'):
                    step.scale = size[::-1]
        cfg.dump(folder / 'config.py')
        _write_files(cfg, checkpoint, size, images, folder, trained=bool(args.checkpoint))
        names = [*([MMDET] if _mmdet_builds(cfg) else []), OURS, *FAST, *FILES]
        skipped = {'ours compiled': not args.compile, BF16: not _has_bfloat16()}
        names = [n for n in names if not skipped.get(n)]
        figures = _figures(cfg, checkpoint, folder) if args.figures else {}
        with ExitStack() as stack:
            given = prepare, folder, checkpoint, images, size
            ways = _start(stack, {n: (given[0], n, *given[1:]) for n in names})
            memory = {n: way.ask(_memory) for n, way in ways.items()}
            apart = _differences({n: way.ask(_scores) for n, way in ways.items()})
            for kind in (MODEL, WHOLE, STREAMS):
                for n, times in _take_turns(ways, kind, args.rounds).items():
                    row = dict(name=n, group=f'{at}, {kind}', times=times, memory_mib=memory[n])
                    rows.append(dict(row, difference=apart.get(n), note=figures.get(n, '')))
    with ExitStack() as stack:
        has_timm = importlib.util.find_spec('timm')
        chosen = {n: way for n, way in NETWORKS.items() if way[0] != 'timm' or has_timm}
        calls = {n: (prepare_network, *way, size) for n, way in chosen.items()}
        for n, times in _take_turns(_start(stack, calls), MODEL, args.rounds).items():
            rows.append(dict(name=n, group=f'{at}, backbone', times=times))
    return rows


def _start(stack: ExitStack, calls: Mapping[str, tuple]) -> dict[str, OwnProcess]:
    return {name: stack.enter_context(own_process(name, *call)) for name, call in calls.items()}


def _take_turns(ways: Mapping[str, OwnProcess], kind: str, rounds: int) -> dict[str, list[float]]:
    return interleave({n: partial(way.ask, _seconds, kind) for n, way in ways.items()}, rounds, 1)


class Way:
    """One way to run the model, in a process of its own.

    Args:
        model: Predicts one image in memory.
        whole: Predicts an image file.
        images: The files.
        stream: Makes what predicts one image in memory with half of the threads.
        scores: What it is compared by.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        whole: Callable[[Path], Any] | None = None,
        images: Sequence[Path] = (),
        stream: Callable[[], Callable[[], Any]] | None = None,
        scores: Callable[[], Any] | None = None,
    ) -> None:
        self.model, self.whole, self.images = model, whole, images
        self.stream, self.scores = stream, scores
        self.streams: list[Callable[[], Any]] = []

    def seconds(self, kind: str) -> float:
        """For one image."""
        if kind == MODEL:
            return seconds(self.model)
        if kind == WHOLE:
            return seconds(lambda: [*map(self.whole, self.images)]) / len(self.images)
        threads = torch.get_num_threads()
        torch.set_num_threads(max(threads // 2, 1))
        try:
            self.streams = self.streams or [self.stream(), self.stream()]
            with ThreadPoolExecutor(2) as pool:  # two images in each
                return seconds(lambda: [*pool.map(lambda call: (call(), call()), self.streams)]) / 4
        finally:
            torch.set_num_threads(threads)


def prepare(
    name: str, folder: Path, checkpoint: str, images: Sequence[Path], size: tuple[int, int]
) -> None:
    """Makes a way by its name, in its process."""
    with Image.open(images[0]) as image:
        pixels = np.asarray(image.convert('RGB').resize(size[::-1]))
    make = _prepare_file if name in FILES else _prepare_pytorch
    _WAY.append(make(name, folder, checkpoint, images, pixels))


def _prepare_file(
    name: str, folder: Path, checkpoint: str, images: Sequence[Path], pixels: np.ndarray
) -> Way:
    threads, precision = torch.get_num_threads(), 'bf16' if name == BF16 else 'f32'
    file = ExportedModel(folder / FILES[name], threads, precision)

    def stream() -> Callable[[], Any]:
        one = ExportedModel(folder / FILES[name], max(threads // 2, 1), precision)
        return partial(one.run, pixels)

    def whole(path: Path) -> Any:
        return file.predict(_decoded(path))

    def scores() -> np.ndarray:
        found = file.run(pixels)
        return _compared(found.get('scores'), found.get('segmentation'))

    return Way(partial(file.run, pixels), whole, images, stream, scores)


def _prepare_pytorch(
    name: str, folder: Path, checkpoint: str, images: Sequence[Path], pixels: np.ndarray
) -> Way:
    cfg = load_config(folder / 'config.py')
    if name == MMDET:
        cfg.model.backbone.type = 'mmdet.Res2Net'
        cfg.model.backbone.pop('first_block')
    model = ConfiguredModel(cfg, checkpoint, 'cpu', fast=FAST.get(name))
    call = partial(model.run, model.prepare(pixels))
    whole: Callable[[Path], Any] = model.predict
    if name == MMDET:
        model.model.cfg = cfg
        inference_detector = require('mmdet.apis').inference_detector

        def whole(path: Path) -> Any:
            return inference_detector(model.model, str(path))

    def scores() -> np.ndarray:
        found = call()
        if 'pred_sem_seg' in found:
            return _compared(None, found.pred_sem_seg.data.numpy())
        kept = found.pred_score if 'pred_score' in found else found.pred_instances.scores
        return _compared(kept.numpy(), None)

    return Way(call, whole, images, lambda: call, scores)


def _compared(scores: np.ndarray | None, labels: np.ndarray | None) -> np.ndarray:
    """The scores of what was found, or the share of each class, sorted."""
    return np.sort(np.bincount(labels.ravel()) / labels.size if scores is None else scores)


def prepare_network(source: str, variant: str, way: str, size: tuple[int, int]) -> None:
    """A backbone, in its process."""
    net = BUILDERS[source](variant, make_state(variant)).requires_grad_(False)
    net.eval()  # mmdet's returns nothing
    image, threads = normal_image(size, 1), torch.get_num_threads()
    if way in ('PyTorch', 'folded'):
        if way == 'folded':
            net = optimize_for_inference(net)
        call = torch.inference_mode()(partial(net, image))
    elif source == 'ours':
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, name) for name in ('net.xml', 'int8.xml')]
            export(net, paths[0], size)  # compares features with PyTorch's
            if way == INT8:
                quantize(paths[0], paths[1], [pixels])
            call = partial(ExportedModel(paths[way == INT8], threads, 'f32').run, pixels)
    else:

        def levels(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = net(x)
            return tuple(found.values() if isinstance(found, Mapping) else found)

        traced = torch.jit.trace(levels, image, check_trace=False)
        shape = [list(image.shape)]
        file = require('openvino').convert_model(traced, example_input=image, input=shape)
        options = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=threads)
        request = openvino_core().compile_model(file, 'CPU', options).create_infer_request()
        call = partial(request.infer, [image.numpy()])
    _WAY.append(Way(call))


def _nothing(*_: Any) -> tuple[dict, tuple[int, int]]:
    """In place of a comparison: which boxes random weights give depends on rounding."""
    return {}, (0, 0)


def _seconds(kind: str) -> float:
    return _WAY[0].seconds(kind)


def _memory() -> float | None:
    return peak_memory(_WAY[0].model)


def _scores() -> np.ndarray:
    return _WAY[0].scores()


def _differences(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Share of the scores of each way in float32 that ours lacks, or that only ours has."""
    apart = {}
    for name, scores in found.items():
        if name not in (INT8, BF16):
            apart[name] = _unpaired(scores, found[OURS])
            if not apart[name] <= BOUND:
                raise ToolError(
                    f'{apart[name]:.0%} of the scores of {name} and {OURS} differ by more than '
                    f'{CLOSE:g}'
                )
    return apart


def _unpaired(scores: np.ndarray, others: np.ndarray) -> float:
    """Share of the values of two sorted arrays that have no counterpart in the other."""
    i = j = pairs = 0
    while i < len(scores) and j < len(others):
        if abs(scores[i] - others[j]) < CLOSE:
            i, j, pairs = i + 1, j + 1, pairs + 1
        elif scores[i] < others[j]:
            i += 1
        else:
            j += 1
    most = max(len(scores), len(others))
    return (most - pairs) / most if most else 0.0


def _figures(cfg: Config, checkpoint: str, folder: Path) -> dict[str, str]:
    """What PyTorch and the files measure on the validation set, as text."""
    models = {OURS: lambda: ConfiguredModel(cfg, checkpoint, 'cpu').model}
    for name in ('onnxruntime', FLOAT, INT8):
        models[name] = partial(ExportedModule, folder / FILES[name], facts_of(cfg.model))
    found = {name: figures_of(cfg, make()).items() for name, make in models.items()}
    return {n: ', '.join(f'{k.rpartition("/")[2]} {v:.4f}' for k, v in f) for n, f in found.items()}


def _mmdet_builds(cfg: Config) -> bool:
    """Whether mmdet's own Res2Net computes what the backbone of the config does."""
    parts = our_backbones(cfg) if cfg.get('default_scope') == 'mmdet' else []
    plain = len(parts) == 1 and parts[0].get('depth', 50) in (50, 101, 152)
    return plain and parts[0].get('first_block') == 'mmdet'


def _has_bfloat16() -> bool:
    info = Path('/proc/cpuinfo')
    return info.exists() and 'bf16' in info.read_text()


def _decoded(path: Path) -> np.ndarray:
    """(H, W, 3), RGB."""
    return np.ascontiguousarray(LoadImageFromFile().picture(str(path))[..., ::-1])


def _images(args: argparse.Namespace) -> list[Path]:
    """Images that are wider than high."""
    folder = args.images or Path(os.environ.get('RES2NET_MM_DATA', 'data'), 'coco_ccby')
    found = []
    for path in find_images(folder):
        with Image.open(path) as image:
            found += [path] * (image.width >= image.height)
        if len(found) == args.limit:
            return found
    if not found:
        raise ToolError(f'{folder} holds no image that is wider than high')
    return found


def _write_files(
    cfg: Config,
    checkpoint: str,
    size: tuple[int, int],
    images: Sequence[Path],
    folder: Path,
    trained: bool,
) -> None:
    """Exports the model to the files of ``FILES``; int8 is calibrated on training images."""
    model = ConfiguredModel(cfg, checkpoint, 'cpu')
    rule = dict(scale=list(size[::-1]), keep_ratio=True)
    about = dict(classes=model.classes, config=Path(cfg.filename).stem, resize=rule)
    with ExitStack() as stack:
        if not trained:  # scores are compared
            stack.enter_context(mock.patch.object(EXPORT, COMPARING, _nothing))
        for name in ('onnxruntime', FLOAT):
            export(model.model, folder / FILES[name], size, about=about)
    resize = ExportedModel(folder / FILES[FLOAT]).resize
    examples = ResizedImages(cfg, 300) if trained else [resize(_decoded(p)) for p in images]
    quantize(folder / FILES[FLOAT], folder / FILES[INT8], examples)
