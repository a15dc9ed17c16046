"""One model in PyTorch, onnxruntime and OpenVINO: what each way to run it costs (task ``deploy``).

Measured at each size: ``model``, from the pixels of one image to boxes or labels; ``end to end``,
from the files of several images, decoded, resized and predicted in turn; ``two streams``, two
images at a time with half of the threads each, in seconds an image; and ``backbone``, the network
of the config beside others in OpenVINO. Files are of a fixed size, as ``tools/export.py`` writes
them by default, and images are wider than high so that they fit. Before anything is timed, the ways
that compute in float32 must find the same scores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from res2net_mm.data.transforms import LoadImageFromFile
from res2net_mm.deploy import export
from res2net_mm.deploy.int8 import has_int8_instructions, quantize
from res2net_mm.deploy.running import ExportedModel
from res2net_mm.engine.config import load_config, our_backbones
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.exported import ExportedModule, task_of
from res2net_mm.engine.infer import ConfiguredModel, find_images
from res2net_mm.engine.quantising import TrainingImages
from res2net_mm.engine.quantising import measure as figures_of

from .contenders import BUILDERS, VARIANT, make_state, normal_image, require
from .detectors import OURS as MAKES_WEIGHTS
from .detectors import build
from .measure import OwnProcess, interleave, make_record, own_process, peak_memory, seconds
from .networks import group_name, parse_sizes

MMDET, OURS, FOLDED, COMPILED = 'mmdet', 'ours', 'ours folded', 'ours folded and compiled'
ONNX, OPENVINO, INT8, BF16 = (
    'onnxruntime',
    'OpenVINO',
    'OpenVINO int8',
    'OpenVINO int8 and bfloat16',
)
FILES = {ONNX: 'model.onnx', OPENVINO: 'model.xml', INT8: 'int8.xml', BF16: 'int8.xml'}
FAST = {FOLDED: {}, COMPILED: dict(compile='default')}
EXACT = (MMDET, OURS, FOLDED, COMPILED, ONNX, OPENVINO)
NETWORKS = {
    'ours': 'Res2Net-50',
    'timm': "timm's res2net50d",
    'resnet50': "torchvision's ResNet-50",
}
MODEL, WHOLE, STREAMS, BACKBONE = 'model', 'end to end', 'two streams', 'backbone'
BOUND = 1e-3  # by which scores may differ
_WAY: list[Any] = []  # what this process measures


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """Adds the options of the task."""
    parser.add_argument('config', nargs='?', default='faster_rcnn_r2n50.py', help='of the model')
    parser.add_argument(
        '--checkpoint', help='its weights (random ones, for a Faster or Mask R-CNN)'
    )
    text = 'images, also in folders below it ($RES2NET_MM_DATA/coco_ccby)'
    parser.add_argument('--images', type=Path, metavar='FOLDER', help=text)
    parser.add_argument('--limit', type=int, default=8, metavar='N', help='images to take (8)')
    sizes = ['480x640', '800x1216']
    text = f'that files are for and images are resized to ({" ".join(sizes)})'
    parser.add_argument('--size', nargs='+', default=sizes, metavar='HxW', help=text)
    parser.add_argument('--compile', action='store_true', help='torch.compile too: takes minutes')
    parser.add_argument(
        '--figures', action='store_true', help='measure each on the validation set (--checkpoint)'
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the task."""
    if args.device != 'cpu':
        raise ToolError('deploy measures on the CPU: leave out --device')
    if args.figures and not args.checkpoint:
        raise ToolError('--figures needs the weights of a trained model: --checkpoint')
    sizes = parse_sizes(args.size)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rows += _measure_size(args, size)
    title = f'{Path(args.config).stem} in several runtimes'
    notes = [] if has_int8_instructions() else ['this processor has no VNNI instructions']
    return make_record(args, title, rows, None, notes)


def _measure_size(args: argparse.Namespace, size: tuple[int, int]) -> list[dict[str, Any]]:
    cfg = load_config(args.config)
    images = _images(args)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        checkpoint = args.checkpoint or _random_weights(args.config, images, folder)
        cfg.model.backbone.init_cfg = None
        if not args.checkpoint:
            cfg.model.backbone.first_block = 'mmdet'
        _resize_to(cfg, size)
        cfg.dump(folder / 'config.py')
        _write_files(cfg, checkpoint, size, images, bool(args.checkpoint), folder)
        names = [n for n in (MMDET, OURS, FOLDED, COMPILED, *FILES) if _is_for(n, cfg, args)]
        given = folder, checkpoint, images, size
        ways = {n: stack.enter_context(own_process(n, prepare, n, *given)) for n in names}
        memory = {n: way.ask(_memory) for n, way in ways.items()}
        found = {n: way.ask(_scores) for n, way in ways.items()}
        apart = {n: _difference(n, found[n], found[OURS]) for n in names}
        figures = _figures(cfg, checkpoint, folder, names) if args.figures else {}
        rows = []
        for kind in (MODEL, WHOLE, STREAMS):
            times = _take_turns(ways, kind, args.rounds)
            for n in names:
                row = dict(name=n, group=f'{group_name(size, 1)}, {kind}', times=times[n])
                row.update(memory_mib=memory[n], difference=apart[n], note=figures.get(n, ''))
                rows.append(row)
    with ExitStack() as stack:
        ways = {}
        for source, title in NETWORKS.items():
            if source != 'timm' or _has_timm():
                own = own_process(title, prepare_network, source, size)
                ways[title] = stack.enter_context(own)
        times = _take_turns(ways, MODEL, args.rounds)
        group = f'{group_name(size, 1)}, {BACKBONE} in {OPENVINO}'
        rows += [dict(name=n, group=group, times=times[n]) for n in ways]
    return rows


def _take_turns(ways: Mapping[str, OwnProcess], kind: str, rounds: int) -> dict[str, list[float]]:
    return interleave({n: partial(way.ask, _seconds, kind) for n, way in ways.items()}, rounds, 1)


class Way:
    """One way to run the model, in a process of its own.

    Args:
        model: Pixels (H, W, 3) -> anything.
        whole: File -> anything.
        half: Makes what predicts with half of the threads, once for each stream.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        whole: Callable[[Path], Any],
        half: Callable[[], Callable[[], Any]],
        images: Sequence[Path],
    ) -> None:
        self.model, self.whole, self.half, self.images = model, whole, half, images
        self.streams: list[Callable[[], Any]] = []

    def seconds(self, kind: str) -> float:
        """Of one image."""
        if kind == MODEL:
            return seconds(self.model)
        if kind == WHOLE:
            return seconds(lambda: [self.whole(image) for image in self.images]) / len(self.images)
        threads = torch.get_num_threads()
        torch.set_num_threads(max(threads // 2, 1))
        try:
            self.streams = self.streams or [self.half() for _ in range(2)]
            with ThreadPoolExecutor(2) as pool:
                return seconds(lambda: [*pool.map(_twice, self.streams)]) / 4
        finally:
            torch.set_num_threads(threads)


def _twice(call: Callable[[], Any]) -> None:
    call()
    call()


def prepare(
    name: str, folder: Path, checkpoint: str, images: Sequence[Path], size: tuple[int, int]
) -> None:
    """Makes a way by its name, in its process."""
    with Image.open(images[0]) as image:
        pixels = np.asarray(image.convert('RGB').resize(size[::-1]))
    threads = torch.get_num_threads()
    if name in FILES:
        options = dict(precision='bf16') if name == BF16 else {}

        def half() -> Callable[[], Any]:
            other = ExportedModel(folder / FILES[name], max(threads // 2, 1), **options)
            return partial(other.run, pixels)

        file = ExportedModel(folder / FILES[name], threads, **options)
        load = LoadImageFromFile().picture

        def whole(path: Path) -> Any:
            return file.predict(np.ascontiguousarray(load(str(path))[..., ::-1]))

        way = Way(partial(file.run, pixels), whole, half, images)
        way.scores = lambda: file.run(pixels).get('scores')
    else:
        cfg = load_config(folder / 'config.py')
        if name == MMDET:
            cfg.model.backbone.type = 'mmdet.Res2Net'
            cfg.model.backbone.pop('first_block')
        model = ConfiguredModel(cfg, checkpoint, 'cpu', fast=FAST.get(name))
        call = partial(model.run, model.prepare(pixels))
        whole = model.predict
        if name == MMDET:
            model.model.cfg = cfg

            def whole(path: Path) -> Any:
                return require('mmdet.apis').inference_detector(model.model, str(path))

        way = Way(call, whole, lambda: call, images)
        way.scores = lambda: getattr(call().get('pred_instances'), 'scores', None)
    _WAY.append(way)


def prepare_network(source: str, size: tuple[int, int]) -> None:
    """A backbone in OpenVINO, in its process."""
    openvino = require('openvino')
    net = BUILDERS[source](VARIANT, make_state(VARIANT)).eval().requires_grad_(False)
    image = normal_image(size, 1)
    traced = torch.jit.trace(lambda x: tuple(_levels(net(x))), image, check_trace=False)
    file = openvino.convert_model(traced, example_input=image, input=[list(image.shape)])
    options = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads())
    request = openvino.Core().compile_model(file, 'CPU', options).create_infer_request()
    pixels = image.numpy()
    _WAY.append(Way(lambda: request.infer([pixels]), None, None, ()))


def _levels(found: Any) -> Sequence[torch.Tensor]:
    return [*found.values()] if isinstance(found, Mapping) else found


def _seconds(kind: str) -> float:
    return _WAY[0].seconds(kind)


def _memory() -> float | None:
    return peak_memory(_WAY[0].model)


def _scores() -> np.ndarray:
    found = _WAY[0].scores()
    return np.zeros(0) if found is None else np.sort(np.asarray(found))


def _difference(name: str, found: np.ndarray, reference: np.ndarray) -> float | None:
    if name not in EXACT:
        return None
    same = found.shape == reference.shape
    apart = float(np.abs(found - reference).max(initial=0)) if same else float('inf')
    if apart > BOUND:
        raise ToolError(f'scores of {name} and {OURS} differ by {apart:.1e}')
    return apart


def _figures(cfg: Config, checkpoint: str, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """What each measures on the validation set, as text."""
    found = {}
    for name in (OURS, *FILES):
        if name not in names:
            continue
        model = ConfiguredModel(cfg, checkpoint, 'cpu').model
        if name in FILES:
            model = ExportedModule(folder / FILES[name], task_of(cfg.model))
        figures = figures_of(cfg, model).items()
        found[name] = ', '.join(f'{key.rpartition("/")[2]} {value:.4f}' for key, value in figures)
    return found


def _is_for(name: str, cfg: Config, args: argparse.Namespace) -> bool:
    if name == COMPILED:
        return args.compile
    if name == BF16:
        info = Path('/proc/cpuinfo')
        return info.exists() and 'bf16' in info.read_text()
    return name != MMDET or (cfg.get('default_scope') == 'mmdet' and _mmdet_has(cfg))


def _mmdet_has(cfg: Config) -> bool:
    """Whether mmdet's own Res2Net can be built from the config."""
    parts = our_backbones(cfg)
    extra = {'dcn', 'base_channels', 'stem_channels'}
    plain = len(parts) == 1 and parts[0].type.endswith('.Res2Net') and not extra & {*parts[0]}
    return plain and parts[0].get('first_block') == 'mmdet'


def _has_timm() -> bool:
    try:
        return bool(require('timm'))
    except ToolError:
        return False


def _images(args: argparse.Namespace) -> list[Path]:
    """Images that are wider than high."""
    folder = args.images or Path(os.environ.get('RES2NET_MM_DATA', 'data'), 'coco_ccby')
    found = []
    for path in find_images(folder):
        with Image.open(path) as image:
            if image.width >= image.height:
                found.append(path)
        if len(found) == args.limit:
            break
    if not found:
        raise ToolError(f'{folder} holds no image that is wider than high')
    return found


def _random_weights(config: str, images: list[Path], folder: Path) -> str:
    build(MAKES_WEIGHTS, config, images, folder, 'cpu')
    return str(folder / 'weights.pth')


def _resize_to(cfg: Config, size: tuple[int, int]) -> None:
    """Makes the test pipelines resize to a size, and mmdet's first block that of the model."""
    for key in ('val_dataloader', 'test_dataloader'):
        for step in cfg[key].dataset.pipeline:
            if str(step.type).endswith('Resize'):
                step.scale = size[::-1]


def _write_files(
    cfg: Config,
    checkpoint: str,
    size: tuple[int, int],
    images: Sequence[Path],
    trained: bool,
    folder: Path,
) -> None:
    """The model in the files of ``FILES``."""
    model = ConfiguredModel(cfg, checkpoint, 'cpu')
    about = dict(classes=model.classes, config=Path(cfg.filename).stem)
    about['resize'] = dict(scale=list(size[::-1]), keep_ratio=True)
    for name in (FILES[ONNX], FILES[OPENVINO]):
        export(model.model, folder / name, size, about=about)
    file = ExportedModel(folder / FILES[OPENVINO])
    if trained:
        examples: Sequence[np.ndarray] = TrainingImages(cfg, 300)
    else:
        examples = [file.resize(mmcv.imread(str(path), channel_order='rgb')) for path in images]
    quantize(folder / FILES[OPENVINO], folder / FILES[INT8], examples)
