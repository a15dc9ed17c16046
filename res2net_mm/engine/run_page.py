"""The page of a run: report.html in its work dir, made of the files there."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from ..data.errors import DataError
from ..data.sets.coco import read_json
from ..evaluation import charts
from ..evaluation.tables import main_metric
from ..files import remove_partial, write_text
from .errors import ToolError

PAGE, RUN, VALIDATION = 'report.html', 'run.json', 'validation.json'
MOST_IMAGES = 1000  # of a validation whose results are examined while a run trains
_PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'res2net_mm')
_NO_MEASURE = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory')
_OF_CLASS = re.compile(r'.*_(precision|IoU|Acc|(?<!bbox_)(?<!segm_)AP\d+)')  # of one class

Values = dict[str, dict[int, float]]  # by name and iteration


def note_run(cfg: Config, lines: str) -> None:
    """Notes in the work dir how a run is started, after earlier starts of the same run.

    ``lines`` are what the run says at its start.
    """
    versions = {name: getattr(sys.modules.get(name), '__version__', '') for name in _PACKAGES}
    starter = ['python']
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        starter = ['torchrun', '--nproc_per_node', os.environ['LOCAL_WORLD_SIZE']]
    start = dict(
        command=shlex.join([*starter, *sys.argv]),
        time=time.strftime('%Y-%m-%d %H:%M:%S'),
        lines=lines,
        seed=cfg.randomness['seed'],
        versions={'python': platform.python_version(), **versions},
    )
    for suffix in ('', '.json', '.html'):  # left by a kill
        remove_partial(cfg.work_dir, suffix)
    file = Path(cfg.work_dir, RUN)
    earlier = _read(file).get('starts', []) if cfg.get('resume') else []
    write_text(file, json.dumps(dict(starts=[*earlier, start]), indent=1))


def note_validation(work_dir: str, examined: Sequence[Mapping], worst: Sequence[Mapping]) -> None:
    """Keeps the results of the last validation for the page.

    Args:
        work_dir: The run's.
        examined: What each metric was computed from, see ``evaluation.images_run``. The page shows
            the first.
        worst: For segmentors, the worst images, as for ``segmentation_sections``.
    """
    first = next(iter(examined), {})
    if len(first.get('images', ())) > MOST_IMAGES:
        first = dict(unexamined=len(first['images']))
    content = dict(worst=worst, metrics=len(examined), **first)
    text = json.dumps(content, default=lambda value: value.tolist())  # of numpy
    write_text(Path(work_dir, VALIDATION), text)


def write_report(
    work_dir: str | Path, out: str | Path | None = None, results: Sequence[str] = ()
) -> Path:
    """Writes the page of a run from what its work dir holds; what is missing is said on it.

    ``results`` are sections to show in place of those on the last validation.

    Raises:
        ToolError: There is no run in the work dir.
        DataError: A file of the run is damaged.
    """
    folder = Path(work_dir)
    logs, configs = (sorted(folder.glob(f'*/vis_data/{n}')) for n in ('scalars.json', 'config.py'))
    if not logs and not configs:
        raise ToolError(f'{folder} holds no run: there is no TIME/vis_data/scalars.json in it')
    starts, last = _read(folder / RUN).get('starts', []), _read(folder / VALIDATION)
    trained, measured = read_scalars(logs)
    results, examined = list(results) or _results(last), not results and 'unexamined' not in last
    sections = [charts.note(_state(trained, measured)), _curves(trained, measured), *results]
    missing = [] if measured else ['No measures: the run has not validated yet.']
    if 'unexamined' in last and not results:
        missing.append(
            f'No results: {last["unexamined"]:,} images were validated, and up to {MOST_IMAGES:,} '
            'are examined while a run trains. Give test.py --out results.json, and report.py that '
            'file with --results and --annotations.'
        )
    elif not results:
        missing.append('No results of a validation with a COCO, VOC or IoU metric.')
    if last.get('metrics', 1) > 1 and examined:
        missing.append(f'Results of {last["metrics"]} metrics: those of the first are shown.')
    if starts:
        commands = '\n'.join(f'{start["command"]}  # {start["time"]}' for start in starts)
        seed = f'The seed is {starts[-1]["seed"]} (randomness.seed); the config is below.'
        versions = charts.table('Versions', ('', ''), starts[-1]['versions'].items())
        sections += [
            charts.section('Data and start', charts.listing(starts[-1]['lines'])),
            charts.section('Repeat it', charts.listing(commands), charts.note(seed), versions),
        ]
    else:
        missing.append(f'No {RUN}, which train.py writes: command, data and versions.')
    if missing:
        sections.append(charts.section('Missing', *map(charts.note, missing)))
    if configs:
        text = configs[-1].read_text(encoding='utf-8')
        sections.append(charts.section('Config', charts.listing(text, str(configs[-1]))))
    return charts.write_page(Path(out or folder / PAGE), folder.resolve().name, sections)


def read_scalars(logs: Sequence[Path]) -> tuple[Values, Values]:
    """What a run logged in training and in validation.

    What a resumed run does again takes the place of what it did before.

    Args:
        logs: ``scalars.json`` of mmengine's LocalVisBackend of each start, oldest first.
    """
    trained, measured = defaultdict(dict), defaultdict(dict)
    for log in logs:
        lines = [line for line in log.read_text().splitlines() if line.endswith('}')]
        try:
            records = [json.loads(line) for line in lines]
        except ValueError as error:
            raise DataError(f'a line is not valid JSON ({error})', str(log), 'remove it') from error
        first = min((r['iter'] for r in records if 'lr' in r), default=float('inf'))
        for values in (*trained.values(), *measured.values()):
            for place in [place for place in values if place >= first]:
                del values[place]
        ended: dict[int, int] = {}  # epoch -> the last iteration that was logged in it
        for record in records:
            if 'lr' in record and 'epoch' in record:
                ended[record['epoch']] = record['iter']
            step = record.get('step', 0)  # of a validation: of mmengine's default, its epoch
            place = record.get('iter', ended.get(step, step))
            for name, value in record.items():
                if name not in _NO_MEASURE and isinstance(value, (int, float)):
                    (trained if 'lr' in record else measured)[name][place] = value
    return dict(trained), dict(measured)


def _curves(trained: Values, measured: Values) -> str:
    losses = dict(loss={}, val_loss=measured.get('val_loss', {}))
    losses |= {name: values for name, values in trained.items() if 'loss' in name}
    main = main_metric(measured)
    names = sorted(measured, key=lambda name: (name != main, main_metric([name]) is None))
    names = [name for name in names if 'loss' not in name and not _OF_CLASS.fullmatch(name)][:8]
    shown = {
        'Loss': losses,
        'Measures': {n: {k: v for k, v in measured[n].items() if v >= 0} for n in names},
        'Learning rate': {'lr': trained.get('lr', {})},
        'Images a second': {'images_per_s': trained.get('images_per_s', {})},
    }
    figures = [
        charts.lines(title, {name: list(v.items()) for name, v in series.items()}, 'iteration')
        for title, series in shown.items()
    ]
    return charts.section('Curves', charts.grid(*figures))


def _results(last: Mapping[str, Any]) -> list[str]:
    """Sections on the last validation, if its results were kept."""
    from ..evaluation.analysis import analyse  # these take long to import
    from ..evaluation.analysis_page import detection_sections, segmentation_sections

    if 'confusion' in last:
        return segmentation_sections(np.array(last['confusion']), last['classes'], last['worst'])
    if 'annotations' not in last:
        return []
    return detection_sections(analyse(last, last['results'], 'bbox'), last, last['results'])


def _state(trained: Values, measured: Values) -> str:
    done = max((max(values, default=0) for values in trained.values()), default=0)
    text = f'{done:,} iterations are logged'
    if main := main_metric(measured):
        finite = {k: v for k, v in measured[main].items() if math.isfinite(v)} or measured[main]
        place, best = max(finite.items(), key=lambda item: item[1])
        last = measured[main][max(measured[main])]
        text += f'. Best {main}: {best:.4g}, after {place:,}; last: {last:.4g}'
    return f'{text}. Written {time.strftime("%Y-%m-%d %H:%M")}.'


def _read(file: Path) -> dict[str, Any]:
    """The content of one of our files; ``{}`` if there is none."""
    return read_json(file, remedy='remove it') if file.is_file() else {}
