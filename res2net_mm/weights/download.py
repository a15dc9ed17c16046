"""Downloads published files: verified and resumed by their checksum, one process at a time."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urldefrag, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from filelock import FileLock
from mmengine.logging import MMLogger
from tqdm import tqdm

from .reading import CheckpointError

CACHE = 'RES2NET_MM_CACHE'
MIRROR = 'RES2NET_MM_MIRROR'
TIMEOUT = 30.0  # seconds without a byte after which a connection is given up
RETRIES = 5  # in a row, without a new byte
RETRY_WAIT = 0.5  # seconds before the first retry; doubled for each further one

_CHUNK = 1 << 20
_MAX_SIZE = 1 << 34  # bytes of a file of weights


class DownloadError(CheckpointError):
    """A file cannot be downloaded, or is not the one that was asked for."""


class _Failed(Exception):
    """One source does not provide the file."""


class _Dropped(_Failed):
    """The transfer stopped; trying again may help."""


def cache_folder() -> Path:
    """The folder of downloaded files: RES2NET_MM_CACHE if set, else torch.hub's."""
    chosen = os.environ.get(CACHE)
    return Path(chosen).expanduser() if chosen else Path(torch.hub.get_dir(), 'checkpoints')


def fetch(
    url: str,
    checksum: str | None = None,
    *,
    name: str | None = None,
    folder: Path | None = None,
    most: int = _MAX_SIZE,
    verified: bool = False,
    mirrors: bool = True,
) -> Path:
    """Returns the local path of a published file, downloading the file if it is not there yet.

    A transfer that breaks off is continued. If several processes or threads ask for the same file,
    one downloads it and the others wait. RES2NET_MM_MIRROR may list folders and http(s) addresses,
    separated by commas, that are asked for the file first; one in such a folder is used in place.

    Args:
        url: An http or https address that ends in a file name.
        checksum: The first 8 to 64 hex digits of the file's sha256, or ``md5:`` and its md5. By
            default the digits in its name (``name-<8 to 64 digits>.pth``, unless they are a date).
            Without any, the file is kept in a folder named after ``url``, an interrupted download
            starts anew, and the content is verified only if the server redirects with a sha256,
            as the Hugging Face hub does.
        name, folder: Of the local file; by default those of ``url`` and ``cache_folder()``.
        most: Largest accepted file size in bytes.
        verified: Refuse a download that no checksum verifies, the server's included.
        mirrors: Ask RES2NET_MM_MIRROR first.

    Raises:
        DownloadError: No source has the file or can be reached, the file has another checksum or
            is larger than ``most``, the folder cannot be written to, or an address is invalid.
    """
    path, checksum = _target(url, checksum, name, folder)
    failures = []
    try:
        problem = file_problem(path, checksum)
        if not problem:
            return path
        if path.is_file():
            _log(f'{path} is replaced: {problem}')
        for source in [*(_mirrors(path.name) if mirrors else ()), urldefrag(url).url]:
            try:
                if isinstance(source, str):
                    _download_once(source, path, checksum, most, verified)
                    return path
                if problem := file_problem(source, checksum):
                    raise _Failed(problem)
                return source
            except _Failed as failure:
                failures.append(f'{source}: {failure}')
    except OSError as error:  # of the disk: those of the network are _Failed
        raise DownloadError(
            f'cannot keep {path.name} in {path.parent}: {error.strerror or error}; make the folder '
            f'writable and its disk large enough, or set {CACHE} to another folder'
        ) from error
    advice = f'put the file at {path}, or set {MIRROR} to a folder that has it'
    raise DownloadError('; '.join([*failures, advice]))


def is_cached(url: str, checksum: str | None = None, name: str | None = None) -> bool:
    """Whether :func:`fetch` has downloaded a file before, whatever its content is now."""
    return _target(url, checksum, name, None)[0].is_file()


def file_problem(path: Path, checksum: str | None) -> str:
    """What is wrong with a file, or ``''`` if it is the one with this checksum of :func:`fetch`."""
    if not path.is_file():
        return 'there is no such file'
    if not checksum:
        return ''
    kind, _, digits = checksum.rpartition(':')
    digest = hashlib.new(kind or 'sha256', usedforsecurity=False)
    try:
        with open(path, 'rb') as file:
            while data := file.read(_CHUNK):
                digest.update(data)
    except OSError as error:
        return f'it cannot be read ({error.strerror})'
    found = digest.hexdigest()
    if found.startswith(digits):
        return ''
    return f'its {digest.name} should begin with {digits}, but it is {found}'


def _target(
    url: str, checksum: str | None, name: str | None, folder: Path | None
) -> tuple[Path, str | None]:
    """Where a file is kept, and its checksum if that is known."""
    url = urldefrag(url).url
    name = name or unquote(urlsplit(url).path.rpartition('/')[2])
    if not _is_address(url) or name in ('', '.', '..') or re.search(r'[/\\\0]', name):
        rule = 'url must be an http or https address that ends in a file name'
        raise DownloadError(f'{rule}, but got {url!r}')
    in_name = re.search(r'-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.\w+$', name)
    checksum = checksum or (in_name and in_name[1])
    folder = cache_folder() if folder is None else Path(folder)
    if checksum is None:  # only the address distinguishes it from other files of this name
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:10]
    return folder / name, checksum


def _is_address(text: str) -> bool:
    return bool(re.match(r'https?://[^/]', text, re.IGNORECASE))


def _mirrors(name: str) -> Iterator[str | Path]:
    """Where each mirror would have the file of this name."""
    for mirror in filter(None, map(str.strip, os.environ.get(MIRROR, '').split(','))):
        folder = Path(mirror).expanduser()
        if _is_address(mirror):
            yield f'{mirror.rstrip("/")}/{quote(name)}'
        elif folder.is_dir():
            yield folder / name
        else:
            rule = f'{MIRROR} must name http(s) addresses and existing folders, separated by commas'
            raise DownloadError(f'{rule}, but has {mirror!r}')


def _log(message: str) -> None:
    MMLogger.get_current_instance().info(message)


def _download_once(url: str, path: Path, checksum: str | None, most: int, verified: bool) -> None:
    """Downloads a file, or waits for the process that is downloading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _log(f'downloading {url} to {path}')
    with FileLock(f'{path}.lock'):
        if not file_problem(path, checksum):  # another process has just downloaded it
            return
        part = Path(f'{path}.part')
        try:
            _download(url, part, checksum, most, verified)
            os.replace(part, path)
        finally:
            if not checksum:  # it cannot be continued
                part.unlink(missing_ok=True)


def _download(url: str, part: Path, checksum: str | None, most: int, verified: bool) -> None:
    """Makes ``part`` the whole file, and verifies it."""
    left = best = _size(part) if checksum else 0
    failures = 0
    while True:
        if not checksum:  # nothing would show that the content changed meanwhile
            part.unlink(missing_ok=True)
        try:
            sent = _receive(url, part, most)
            break
        except _Dropped:
            failures = 0 if _size(part) > best else failures + 1
            best = max(best, _size(part))
            if best == left or failures > RETRIES:  # without a byte, the next source may be better
                raise
            time.sleep(RETRY_WAIT * 2**failures)
    if verified and not (checksum or sent):
        raise _Failed('it sends no checksum to verify the file by')
    if problem := file_problem(part, checksum or sent):
        part.unlink()
        if not left:
            raise _Failed(problem)
        _log(f'{part.stem}: what an earlier download left does not fit, downloading it anew')
        _download(url, part, checksum, most, verified)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(url: str, part: Path, most: int) -> str | None:
    """Adds the bytes that are missing. Returns the file's sha256 if the server sent it."""
    start, host = _size(part), urlsplit(url).netloc
    headers = {'User-Agent': 'res2net_mm', 'Accept-Encoding': 'identity'}
    headers |= {'Range': f'bytes={start}-'} if start else {}
    request = Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
    redirects = _Redirects()
    try:
        response = build_opener(redirects).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return None  # nothing is left to ask for: the checksum tells whether it is whole
        reason = ' '.join(str(error.reason).split())
        raise _Failed(f'the server answered {error.code} ({reason})') from error
    except (OSError, HTTPException) as error:
        # urllib puts the proxy's host into the request
        way = host if request.host == host else f'{host} (through the proxy of the environment)'
        raise _Dropped(f'no connection to {way}: {getattr(error, "reason", error)}') from error
    with response:
        if response.status not in (200, 206):
            raise _Failed(f'the server answered {response.status} ({response.reason})')
        if response.headers.get_content_type() == 'text/html':
            raise _Failed('the server sent a web page instead of the file')
        start = start if response.status == 206 else 0
        total = None if response.length is None else start + response.length
        # disable=None: shown on a terminal only
        shown = dict(unit='B', unit_scale=True, disable=None)
        bar = tqdm(desc=part.stem, total=total, initial=start, **shown)
        with bar, open(part, 'ab' if start else 'wb') as file:
            while data := _read(response):
                if file.tell() + len(data) > most:
                    file.truncate(0)  # there is nothing to continue
                    raise _Failed(f'it is larger than the {most} bytes expected')
                file.write(data)
                bar.update(len(data))
    if total is not None and _size(part) != total:
        raise _Dropped(f'the connection broke off after {_size(part)} of {total} bytes')
    return redirects.sha256 or _linked_sha256(response.headers)


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)  # what has arrived: the rest may never come
    except (OSError, HTTPException) as error:
        raise _Dropped(f'the connection broke off: {error}') from error


def _linked_sha256(headers: Any) -> str | None:
    found = re.fullmatch('"?([0-9a-f]{64})"?', headers.get('X-Linked-Etag', ''))
    return found[1] if found else None


class _Redirects(HTTPRedirectHandler):
    """Keeps the sha256 that the Hugging Face hub sends with the redirect to a large file."""

    sha256: str | None = None

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        self.sha256 = _linked_sha256(headers) or self.sha256
        return super().redirect_request(req, fp, code, msg, headers, newurl)
