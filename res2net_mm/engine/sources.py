"""What can be predicted: image files, folders, patterns, videos, addresses and cameras."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from glob import glob
from itertools import chain, count, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..checks import listed
from ..data.errors import DataError
from ..data.sets.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from ..weights.download import DownloadError, fetch
from .errors import ToolError, one_line
from .terminal import warn

Source = Path | str  # a file, or an address or the number of a camera

VIDEOS = ('.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv')
RESULTS = 'predictions.json'
_START = b'{\n "classes": ['  # how this file begins
_LARGEST = 1 << 31  # bytes of a download
_SAFE = {  # no playlists, which name other files
    'format_whitelist': 'asf,avi,gif,matroska,mov,mpeg,mpegts',
    'protocol_whitelist': 'file',
}
_WEB = ('http://', 'https://')
_DISK = {errno.EDQUOT, errno.ENOSPC, errno.EROFS}  # they stop every other picture as well
_TICKS = 90_000  # of a second, for the times of frames


class Frame(NamedTuple):
    """A picture of a video."""

    index: int
    time: float  # seconds since the first frame
    pixels: np.ndarray  # (H, W, 3) of uint8, RGB
    total: int | None = None  # frames that the file says it has
    held: float = 0.0  # seconds that it is shown, if that is known


def find_sources(
    sources: Source | Iterable[Source],
    out: str | Path | None = None,
    suffixes: Sequence[str] = IMAGE_SUFFIXES + VIDEOS,
) -> list[Source]:
    """Files, with those of folders and patterns in order; addresses and cameras as they are.

    Skips ``out``, where pictures will be written, and folders with the ``predictions.json`` of an
    earlier run. ``suffixes`` are those of the files to take from folders and patterns.
    """
    found: list[Source] = []
    for source in [sources] if isinstance(sources, str | Path) else sources:
        text = str(source)
        if _is_address(text) or (text.isdecimal() and not os.path.exists(text)):
            files: Iterable[Source] = [text]
        elif os.path.isdir(source):
            files = _below(Path(source), out, suffixes)
        elif os.path.lexists(source):
            files = [Path(source)]
        else:
            files = _matching(text, out, suffixes)
            if not files:
                raise FileNotFoundError(f'image or folder {source} does not exist')
        found += files
    return list(dict.fromkeys(found))


def find_images(folder: str | Path, out: str | Path | None = None) -> list[Path]:
    """The images of :func:`find_sources` only."""
    found = find_sources(folder, out, IMAGE_SUFFIXES)
    if not all(isinstance(file, Path) for file in found):
        raise ToolError(f'{folder} is no image, folder or pattern')
    return found


def _below(folder: Path, out: str | Path | None, suffixes: Sequence[str]) -> list[Path]:
    if out is not None and os.path.realpath(out) == os.path.realpath(folder):
        raise ToolError(f'--out {out} is the folder of the images; give another folder')
    files: list[Path] = []
    unread: list[str] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:  # a folder that cannot be predicted, and is named there
        files.append(Path(error.filename))

    def leads_elsewhere(link: Path) -> bool:
        return link.is_symlink() and not folder.resolve().is_relative_to(link.resolve())

    tops = [folder]
    for top in tops:  # links last, so that a folder keeps its own name
        for name, folders, names in os.walk(top, onerror=unreadable):
            here, real = Path(name), os.path.realpath(name)
            if real in seen or (here != folder and _is_skipped(here, out)):
                folders.clear()
                continue
            seen.add(real)
            folders[:], names = (sorted(n for n in ns if n[0] != '.') for ns in (folders, names))
            tops += [here / n for n in folders if leads_elsewhere(here / n)]
            files += [here / n for n in names + folders if Path(n).suffix.lower() in suffixes]
            unread += [n for n in names if Path(n).suffix.lower() in UNREAD_SUFFIXES]
    if unread:
        warn(f'{len(unread):,} photos are not read: {listed(unread, 3)}; save them as .jpg')
    if not files:
        raise ToolError(f'folder {folder} holds no file of {", ".join(suffixes)}')
    return sorted(files)


def _matching(pattern: str, out: str | Path | None, suffixes: Sequence[str]) -> list[Path]:
    parts = takewhile(lambda part: not set('*?[') & set(part), Path(pattern).parts)
    root = Path(*parts)  # which is named, and so never skipped

    @functools.cache
    def skipped(folder: Path) -> bool:
        if folder in (root, folder.parent):
            return False
        return skipped(folder.parent) or _is_skipped(folder, out)

    files = [Path(name) for name in sorted(glob(pattern, recursive=True))]
    return [f for f in files if f.suffix.lower() in suffixes and not skipped(f.parent)]


def _is_skipped(folder: Path, out: str | Path | None) -> bool:
    own = out is not None and os.path.realpath(out) == os.path.realpath(folder)
    if own or _is_output(folder):
        warn(f'{folder} is skipped: predictions go, or went, there')
        return True
    return False


def _is_output(folder: Path) -> bool:
    with contextlib.suppress(OSError), open(folder / RESULTS, 'rb') as file:
        return file.read(len(_START)) == _START
    return False


def is_video(source: Source) -> bool:
    """Whether a source has frames: a camera, or a file or address that ends like a video."""
    return is_camera(source) or _path_of(source).suffix.lower() in VIDEOS


def is_camera(source: Source) -> bool:
    """Whether a source is a number that :func:`find_sources` has left as it is."""
    return isinstance(source, str) and source.isdecimal()


def _is_address(source: Source) -> bool:
    return str(source).lower().startswith(_WEB)


def _path_of(source: Source) -> Path:
    if isinstance(source, Path):
        return source
    with contextlib.suppress(ValueError):  # downloading says what is wrong
        return Path(unquote(urlsplit(source).path).replace('\0', ''))
    return Path()


def below_common(files: Iterable[Source], folders: Iterable[Source] = ()) -> dict[Source, str]:
    """The paths of files below the common folder of all files and ``folders``."""
    whole = {file: os.path.abspath(file) for file in files}
    homes = [os.path.dirname(path) for path in whole.values()]
    root = os.path.commonpath([*homes, *map(os.path.abspath, folders)] or ['/'])
    return {file: os.path.relpath(path, root) for file, path in whole.items()}


def places(
    sources: Sequence[Source], out: Path, given: Iterable[Source] = ()
) -> dict[Source, Path]:
    """Where the picture or video of each source goes: as the files are below their common folder.

    Folders that were ``given`` as a source count for that, too. Raises a ToolError if one would
    replace a source, or would be among the user's own files in the folder of one.
    """
    folders = filter(os.path.isdir, given)
    files = below_common((source for source in sources if isinstance(source, Path)), folders)
    homes = {os.path.realpath(os.path.dirname(os.path.abspath(file))) for file in files}
    taken = {os.path.realpath(file) for file in files}
    targets: dict[Source, Path] = {}
    used: set[Path] = set()
    # a.jpg goes to a.jpg, whatever a.bmp is
    for source in sorted(sources, key=lambda s: _path_of(s).suffix.lower() not in ('.jpg', '.mp4')):
        inner = f'camera{source}' if is_camera(source) else _path_of(source).name or 'download'
        place = out / files.get(source, inner)
        suffix = '.mp4' if is_video(source) else '.jpg'
        more = (place.with_name(f'{place.name}.{i}{suffix}') for i in count(2))
        names = chain([place.with_suffix(suffix), place.with_name(place.name + suffix)], more)
        targets[source] = next(name for name in names if name not in used)
        used.add(targets[source])
        if os.path.realpath(targets[source]) in taken:
            raise ToolError(f'--out {out} would replace the image {source}; give another folder')
    written = {os.path.realpath(folder) for folder in (out, *(t.parent for t in targets.values()))}
    if written & homes and not _is_output(out):
        raise ToolError(f'--out {out} is the folder of the images; give another folder')
    return {source: targets[source] for source in sources}


@contextmanager
def local_file(source: Source) -> Iterator[Path]:
    """The file of a source; of an address, a copy of up to 2 GiB that is removed afterwards."""
    if not _is_address(source):
        yield Path(source)
        return
    with TemporaryDirectory() as folder:
        name = f'download{_path_of(source).suffix}'  # without what looks like a checksum
        try:
            file = fetch(source, name=name, folder=Path(folder), most=_LARGEST, mirrors=False)
        except DownloadError as error:  # whose advice is for weights
            raise DataError(str(error).partition('; put the file at')[0]) from error
        except ValueError as error:
            raise DataError(f'no valid address ({one_line(error)})', str(source)) from error
        try:
            yield file
        except DataError as error:
            raise DataError(str(error).replace(str(file), str(source))) from error


def for_each(
    targets: Mapping[Source, Path], job: Callable[[Source, Path, Path], None], failures: list[str]
) -> None:
    """Calls ``job`` with each source, its local file and the place for its picture.

    One that fails does not stop the others, and gives a line in ``failures``. What each of them
    fails at, and a full disk, is raised.
    """
    defect = None
    for source, target in progress(targets.items(), 'image'):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with local_file(source) as file:
                job(source, file, target)
        except DataError as error:
            line = str(error)
            failures.append(line if str(source) in line else f'image {source}: {line}')
        except Exception as error:
            if {getattr(e, 'errno', None) for e in (error, error.__cause__)} & _DISK:
                raise
            if os.environ.get('RES2NET_MM_DEBUG'):
                traceback.print_exception(error)
            reason = f'{type(error).__name__}: {one_line(error)[:300]}'
            failures.append(f'image {source} failed: {reason}')
            defect = error
    if defect and len(failures) == len(targets):
        raise defect


def progress(items: Iterable[Any], unit: str) -> tqdm:
    """A bar, of frames in the same line as the one of images; in a log only now and then."""
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(items, unit=unit, mininterval=interval, position=0, leave=unit == 'image')


def frames_of(source: Source, file: Path | None = None) -> Iterator[Frame]:
    """The frames of a camera, or of a video ``file`` from :func:`local_file`, one at a time.

    Raises a DataError after those that can be read, if there should be more.
    """
    return _camera_frames(int(source)) if is_camera(source) else _video_frames(file)


def _video_frames(file: Path) -> Iterator[Frame]:
    import av

    try:
        with av.open(str(file), options=_SAFE) as container:
            if not container.streams.video:
                raise DataError('it has no pictures', str(file))
            stream = container.streams.video[0]
            stream.thread_type = 'AUTO'
            packets = index = 0
            start, end, held = None, 0.0, 0.0
            # a GIF says neither its length nor how many frames it has, but ends with a semicolon
            damaged = container.format.name == 'gif' and not _ends(file, b';')
            for packet in container.demux(stream):
                packets += packet.size > 0  # the last one is empty
                damaged |= packet.is_corrupt
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    damaged = True
                    continue
                for frame in frames:
                    shown = frame.time  # None in files without times
                    shown = index / float(stream.average_rate or 25) if shown is None else shown
                    start = shown if start is None else start
                    gap = shown - start - end
                    end = shown - start
                    # how long it is shown; if its file does not say so, as long as any before
                    held = (
                        float(frame.duration * frame.time_base)
                        if frame.duration
                        else max(held, gap)
                    )
                    pixels = np.rot90(frame.to_ndarray(format='rgb24'), frame.rotation // 90)
                    pixels = np.ascontiguousarray(pixels)
                    yield Frame(index, end, pixels, stream.frames or None, held)
                    index += 1
            # a trimmed video keeps frames that its list of edits leaves out
            indexed = len(stream.index_entries)
            whole = min(stream.frames, indexed or stream.frames)
            cut = packets < whole or end + held + 1 < _seconds(stream)
            if damaged or cut or not index:
                raise DataError(
                    f'the video is damaged or cut off: {index} frames could be read, up to '
                    f'{end:.1f} seconds',
                    str(file),
                )
    except av.FFmpegError as error:
        reason = error.strerror or one_line(error)
        raise DataError(f'no video that can be read ({reason})', str(file)) from error


def _ends(file: Path, end: bytes) -> bool:
    return file.read_bytes().rstrip(b'\0').endswith(end)


def _seconds(stream: Any) -> float:
    """How long a stream is, as far as its file says."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    parts = stream.metadata.get('DURATION', '0').split(':')  # Matroska's: hours:minutes:seconds
    return sum(float(part) * 60**i for i, part in enumerate(reversed(parts)))


def _camera_frames(number: int) -> Iterator[Frame]:
    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise DataError(f'camera {number} cannot be opened')
        start = time.monotonic()
        for index in count():
            read, pixels = camera.read()
            if not read:
                raise DataError(f'camera {number} gives no more pictures')
            moment = time.monotonic() - start
            yield Frame(index, moment, np.ascontiguousarray(pixels[..., ::-1]))
    finally:
        camera.release()


@contextmanager
def video_writer(path: Path) -> Iterator[Callable[[Frame, np.ndarray], None]]:
    """Yields a function that adds a frame, drawn as (H, W, 3), RGB, to an mp4 file.

    All get the size of the first one: larger ones are cut, smaller ones filled up.
    """
    import av

    with av.open(str(path), 'w', format='mp4') as container:
        stream = container.add_stream('libx264', rate=30, options=dict(preset='veryfast', bf='0'))
        stream.codec_context.time_base = Fraction(1, _TICKS)
        size, last, held = None, -1, 0.0

        def add(given: Frame, pixels: np.ndarray) -> None:
            nonlocal size, last, held
            held = given.held
            if size is None:
                size = stream.width, stream.height = pixels.shape[1::-1]
                # players want yuv420p, which takes even sizes
                stream.pix_fmt = 'yuv444p' if size[0] % 2 or size[1] % 2 else 'yuv420p'
            frame = av.VideoFrame.from_image(Image.fromarray(pixels).crop((0, 0, *size)))
            frame.time_base = Fraction(1, _TICKS)
            frame.pts = last = max(round(given.time * _TICKS), last + 1)
            container.mux(stream.encode(frame))

        yield add
        if size is not None:
            packets = stream.encode()
            if held:  # else a thirtieth of a second
                packets[-1].duration = round(held / packets[-1].time_base)
            container.mux(packets)
