"""Downloads published files: resumed where they stopped, verified, one process at a time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urldefrag, urlsplit

import torch
from filelock import FileLock, Timeout
from mmengine.logging import MMLogger
from tqdm import tqdm

from .reading import CheckpointError

CACHE = 'RES2NET_MM_CACHE'
MIRROR = 'RES2NET_MM_MIRROR'

_CHUNK = 1 << 20
_MIN_RATE = 1 << 10  # bytes a second; a slower server is given up
_MAX_SIZE = 1 << 34  # bytes of a file of weights
_REMINDER = 60.0  # seconds between two log lines of a process that waits for another one
_RETRIES = 5  # in a row, without a new byte
_WAIT = 0.1  # seconds before the first retry; doubled for each further one


class DownloadError(CheckpointError):
    """A file cannot be downloaded, or is not the one that was asked for."""


class _Failed(Exception):
    """One source does not provide the file."""


class _Dropped(_Failed):
    """The transfer stopped; trying again may help."""


class _Slow(_Dropped):
    """The server sends less than ``_MIN_RATE``."""


class _Unreachable(_Dropped):
    """There is no connection to the server."""


def cache_folder() -> Path:
    """The folder of downloaded files: RES2NET_MM_CACHE if set, else torch.hub's."""
    chosen = os.environ.get(CACHE)
    return Path(chosen).expanduser() if chosen else Path(torch.hub.get_dir(), 'checkpoints')


def fetch(
    url: str,
    sha256: str | None = None,
    *,
    md5: str | None = None,
    folder: Path | None = None,
    timeout: float = 30.0,
    most: int = _MAX_SIZE,
) -> Path:
    """Returns the local path of a published file, downloading the file if it is not there yet.

    An unfinished download is resumed. If several processes or threads ask for the same file, one
    downloads it and the others wait. RES2NET_MM_MIRROR may list folders and http(s) addresses,
    separated by commas; they are asked for a file of this name before ``url`` is. A file found in
    such a folder is used in place.

    Args:
        url: An http or https address that ends in a file name.
        sha256: The first 8 to 64 hex digits of the file's sha256. By default the digits in its
            name (``name-<8 to 64 digits>.pth``, unless they are a date). Without any, the content
            is not verified and the file is kept in a folder named after ``url``.
        md5: The 32 hex digits of the file's md5, if no sha256 is published.
        folder: Where to keep the file; by default ``cache_folder()``.
        timeout: Seconds within which a server must send at least 1 KiB a second on average. A
            slower connection is closed and retried; after several failures in a row the call
            ends, and the next call resumes.
        most: Largest accepted file size in bytes.

    Returns:
        The path of the complete file, verified if its sha256 or md5 is known.

    Raises:
        DownloadError: No source has the file or can be reached, the file has another checksum or
            is larger than ``most``, the folder cannot be written to, or an argument or
            RES2NET_MM_MIRROR is invalid.
    """
    url = urldefrag(url).url
    name = _file_name(url)
    digits = _checksum(sha256, md5, name)
    folder = cache_folder() if folder is None else Path(folder)
    if digits is None:  # only the address distinguishes it from other files of this name
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:10]
    path = folder / name
    failures: dict[str, _Failed] = {}
    # Network errors become _Failed where they occur, so an OSError here comes from the disk.
    try:
        problem = _problem(path, digits)
        if not problem:
            return path
        if path.is_file():
            _log(f'{path} is replaced: {problem}')
        for source in [*_mirrors(name), url]:
            try:
                if isinstance(source, Path):
                    return _in_place(source, digits)
                return _download_once(source, path, digits, timeout, most)
            except _Failed as failure:
                failures[str(source)] = failure
    except OSError as error:
        raise DownloadError(
            f'cannot keep {name} in {folder}: {error.strerror or error}; make the folder writable '
            f'and its disk large enough, or set {CACHE} to another folder'
        ) from error
    lines = [f'{source}: {failure}' for source, failure in failures.items()]
    if any(isinstance(failure, _Dropped) for failure in failures.values()):
        lines.append(
            f'download {url} on another machine and put it at {path}, or set {MIRROR} to a folder '
            'that has it'
        )
    raise DownloadError('; '.join(lines))


def digest_of(path: Path, kind: str = 'sha256') -> str:
    """The digest of a file in hexadecimal digits, by the hashlib algorithm ``kind``."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, 'rb') as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ('http', 'https') and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, or an IPv6 address is incomplete
        return False


def _file_name(url: str) -> str:
    if not _is_address(url):
        raise DownloadError(f'url must be an http or https address, but got {url!r}')
    name = unquote(urlsplit(url).path.rpartition('/')[2])
    if name in ('', '.', '..') or re.search(r'[/\\\0]', name):
        raise DownloadError(f'url must end in a file name, but got {url!r}')
    return name


def _checksum(sha256: str | None, md5: str | None, name: str) -> str | None:
    """The first digits of the file's sha256, or ``md5:`` and its whole md5."""
    if md5 is not None:
        if sha256 is not None or not re.fullmatch('[0-9a-fA-F]{32}', md5):
            raise DownloadError(f'md5 must be 32 hex digits, without a sha256, but got {md5!r}')
        return f'md5:{md5.lower()}'
    if sha256 is None:
        found = re.search(r'-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.\w+$', name)
        return found[1] if found else None
    if not re.fullmatch('[0-9a-fA-F]{8,64}', sha256):
        raise DownloadError(f'sha256 must be 8 to 64 hex digits, but got {sha256!r}')
    return sha256.lower()


def _problem(path: Path, checksum: str | None) -> str:
    """What is wrong with a file, or ``''`` if it is the one that was asked for."""
    if not path.is_file():
        return 'there is no such file'
    kind, _, digits = (checksum or '').rpartition(':')
    kind = kind or 'sha256'
    actual = digest_of(path, kind) if digits else ''
    if actual.startswith(digits):
        return ''
    return f'its {kind} should begin with {digits}, but it is {actual}'


def _mirrors(name: str) -> Iterator[str | Path]:
    """Where each mirror would have the file of this name."""
    for mirror in filter(None, map(str.strip, os.environ.get(MIRROR, '').split(','))):
        if _is_address(mirror):
            yield f'{mirror.rstrip("/")}/{quote(name)}'
            continue
        folder = mirror
        if mirror.startswith('file://'):
            folder = unquote(mirror.removeprefix('file://').removeprefix('localhost'))
        folder = os.path.expanduser(folder)
        if not os.path.isdir(folder):
            raise DownloadError(
                f'{MIRROR} must name http(s) addresses and existing folders, separated by commas, '
                f'but has {mirror!r}'
            )
        yield Path(folder, name)


def _in_place(path: Path, checksum: str | None) -> Path:
    try:
        problem = _problem(path, checksum)
    except OSError as error:
        problem = f'it cannot be read ({error.strerror})'
    if problem:
        raise _Failed(problem)
    return path


def _log(message: str) -> None:
    MMLogger.get_current_instance().info(message)


def _download_once(url: str, path: Path, checksum: str | None, timeout: float, most: int) -> Path:
    """Downloads a file, or waits for the process that is downloading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    download = _Download(url, path, checksum, timeout, most)
    lock, patience = FileLock(f'{path}.lock'), 1.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            patience, size = _REMINDER, download.size()
            _log(f'waiting for another process, which is downloading {path} ({size} bytes so far)')
    try:
        if _problem(path, checksum):  # otherwise another process has just downloaded it
            download.run()
    finally:
        lock.release()
    return path


class _Download:
    """One file from one address: ``part`` grows beside it, ``note`` says what it is a part of."""

    def __init__(
        self, url: str, path: Path, checksum: str | None, timeout: float, most: int
    ) -> None:
        self.url, self.path, self.checksum = url, path, checksum
        self.timeout, self.most = timeout, most
        self.part, self.note = Path(f'{path}.part'), Path(f'{path}.part.json')

    def run(self) -> None:
        """Downloads, verifies and renames the part."""
        # disable=None: shown on a terminal only
        with tqdm(
            desc=self.path.name, unit='B', unit_scale=True, unit_divisor=1024, disable=None
        ) as self.bar:
            in_words = self.bar.disable
            if in_words:
                _log(f'downloading {self.url} to {self.path}')
            pieced = self._receive()
            problem = _problem(self.part, self.checksum)
            if problem and pieced:
                _log(f'{self.path.name}: the pieces do not fit together, downloading it anew')
                self._discard()
                self._receive()
                problem = _problem(self.part, self.checksum)
        if problem:
            self._discard()
            raise _Failed(problem)
        with open(self.part, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.path)
        self._discard()
        if in_words:
            _log(f'downloaded {self.path} ({self.path.stat().st_size / 2**20:.1f} MiB)')

    def size(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _validator(self) -> str | None:
        """The ETag or date that this address sent with the part, if it sent one."""
        try:
            note = json.loads(self.note.read_text())
            return note['validator'] if note['url'] == self.url else None
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # missing or half written
            return None

    def _receive(self) -> bool:
        """Asks until the part is the whole file. Returns whether it consists of several pieces."""
        best, failures, connected = self.size(), 0, False
        while True:
            try:
                return self._ask()
            except _Dropped as error:
                connected = connected or not isinstance(error, _Unreachable)
                if not connected:
                    raise
                size, slow = self.size(), isinstance(error, _Slow)
                failures = 0 if size > best and not slow else failures + 1
                best = max(best, size)
                if failures > _RETRIES:
                    raise _Dropped(
                        f'{error}, and {_RETRIES} further attempts brought '
                        f'{"little" if slow else "no"} more; the next call continues with the '
                        f'{size} bytes that are there'
                    ) from error
                time.sleep(_WAIT * 2**failures)

    def _ask(self) -> bool:
        """Asks once for the missing bytes. Returns whether the answer continued the part."""
        offset, kept = self.size(), self._validator()
        headers = {'User-Agent': 'res2net_mm', 'Accept-Encoding': 'identity'}
        if offset and (self.checksum or kept):  # otherwise changed content would go unnoticed
            headers['Range'] = f'bytes={offset}-'
            if kept:
                headers['If-Range'] = kept
        try:
            response = _open(self.url, headers, self.timeout)
        except HTTPError as error:
            if error.code == 416 and 'Range' in headers:
                if self.checksum:
                    return True  # the part is complete or wrong: its checksum will tell
                self._discard()
                raise _Dropped('the file is shorter than the part of it that is there') from error
            reason = ' '.join(str(error.reason).split())
            raise _Failed(f'the server answered {error.code} ({reason})') from error
        with response:
            start, total = _span(response)
            self._check_answer(response, total)
            validator = response.headers.get('ETag', 'W/')
            if validator.startswith('W/'):  # a weak ETag also stands for similar content
                validator = response.headers.get('Last-Modified')
            if not start:
                self._discard()  # before the note describes other content
                self.note.write_text(json.dumps(dict(url=self.url, validator=validator)))
            elif start != offset or not (self.checksum or kept == validator):
                self._discard()
                raise _Dropped('the server continued with other bytes than were asked for')
            self.bar.total = total
            self.bar.n = self.bar.initial = self.bar.last_print_n = start  # not part of the rate
            self.bar.refresh()
            self._store(response)
        if total is not None and self.size() != total:
            raise _Dropped(f'the connection broke off after {self.size()} of {total} bytes')
        return start > 0

    def _check_answer(self, response: HTTPResponse, total: int | None) -> None:
        coding = response.headers.get('Content-Encoding', 'identity')
        packed = self.path.suffix in ('.gz', '.tgz')  # servers call the file's own format a coding
        if coding != 'identity' and not self.checksum and not packed:
            raise _Failed(
                f'the server sends it compressed (Content-Encoding: {coding}) though it was asked '
                'not to, and nothing tells whether that is the file'
            )
        if total is not None and total > self.most:
            raise _Failed(
                f'the server says it has {total} bytes, more than the {self.most} expected'
            )

    def _store(self, response: HTTPResponse) -> None:
        with open(self.part, 'ab', buffering=0) as file:
            while data := memoryview(_read(response, self.timeout)):
                self.bar.update(len(data))
                if file.tell() + len(data) > self.most:
                    self._discard()
                    raise _Failed(f'the server sends more than the {self.most} bytes expected')
                while data:  # a write may store only some of it
                    data = data[file.write(data) :]


def _span(response: HTTPResponse) -> tuple[int, int | None]:
    """Where in the file an answer begins (-1: unclear), and the file's size if known."""
    if response.status == 200:
        return 0, response.length
    if response.status != 206:
        raise _Failed(f'the server answered {response.status} ({response.reason})')
    found = re.match(r'bytes (\d+)-\d+/(\d+|\*)$', response.headers.get('Content-Range', ''))
    if not found:
        return -1, None
    start = int(found[1])
    if found[2] != '*':
        return start, int(found[2])
    return start, None if response.length is None else start + response.length


class _Metered(io.RawIOBase):
    """A stream that raises ``_Slow`` when too few bytes arrive within ``timeout`` seconds."""

    def __init__(self, stream: io.RawIOBase, timeout: float) -> None:
        self.stream, self.timeout = stream, timeout
        self.since, self.count = 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        number = self.stream.readinto(buffer)
        now = time.monotonic()
        self.since = self.since or now  # starts with the first bytes: a server may need to think
        self.count += number or 0
        passed = now - self.since
        if number and passed > self.timeout:
            if self.count < _MIN_RATE * passed:
                raise _Slow(f'only {self.count} bytes came in {passed:.1f} s')
            self.since, self.count = 0.0, 0
        return number

    def close(self) -> None:
        self.stream.close()
        super().close()


class _MeteredResponse(HTTPResponse):
    """An answer that is metered from its first header on."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Metered(self.fp.detach(), sock.gettimeout()))


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """urllib's connections, directly or through the proxies of the environment, metered."""

    def do_open(self, http_class: Any, req: urllib.request.Request, **kwargs: Any) -> HTTPResponse:
        metered = type(http_class.__name__, (http_class,), dict(response_class=_MeteredResponse))
        return super().do_open(metered, req, **kwargs)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and keeps where the last one led."""

    def __init__(self, url: str) -> None:
        self.url = url

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not _is_address(newurl):
            raise HTTPError(newurl, code, f'a redirect to {newurl}, refused', headers, fp)
        self.url = newurl
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str], timeout: float) -> HTTPResponse:
    redirects = _Redirects(url)
    request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
    try:
        return urllib.request.build_opener(redirects, _Connections).open(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        raise
    except URLError as error:
        host = urlsplit(redirects.url).netloc
        raise _Unreachable(f'{host} could not be reached: {_why(error.reason, timeout)}') from error
    except _Slow as error:
        raise _Slow(f'the server did not answer: {error}') from error
    except (OSError, HTTPException) as error:
        raise _Dropped(f'the server did not answer: {_why(error, timeout)}') from error


def _read(response: HTTPResponse, timeout: float) -> bytes:
    try:
        return response.read1(_CHUNK)  # what has arrived: the rest may never come
    except (OSError, HTTPException) as error:
        raise _Dropped(f'the connection broke off: {_why(error, timeout)}') from error


def _why(error: Any, timeout: float) -> str:
    if isinstance(error, socket.gaierror):
        return 'its name could not be resolved (is this machine offline?)'
    if isinstance(error, ConnectionRefusedError):
        return 'it refused the connection'
    if isinstance(error, TimeoutError):
        return f'nothing came for {timeout:g} s'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__
