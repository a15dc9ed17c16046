"""Downloading published files: continued where it was cut off, verified, one process at a time."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import socket
import time
import urllib.request
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
_LEAST = 1 << 10  # bytes a second, below which a server is given up
_MOST = 1 << 34  # bytes of a file of weights
_SAYING = 60.0  # seconds after which a process that waits says so again
_RETRIES = 5  # in a row, without a byte more than before
_WAIT = 0.1  # seconds before the first of them, twice as long before each further one


class DownloadError(CheckpointError):
    """A file that cannot be downloaded, or that is not what it should be."""


class _Failed(Exception):
    """Why one source does not give the file."""


class _Dropped(_Failed):
    """The transfer broke off: worth another attempt."""


class _Slow(_Dropped):
    """Next to nothing came."""


class _Unreachable(_Dropped):
    """No connection came about."""


def cache_folder() -> Path:
    """The folder of downloaded files: RES2NET_MM_CACHE if set, else that of torch.hub."""
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(os.path.expanduser(chosen))
    return Path(torch.hub.get_dir(), 'checkpoints')


def fetch(
    url: str,
    sha256: str | None = None,
    *,
    md5: str | None = None,
    folder: Path | None = None,
    timeout: float = 30.0,
    most: int = _MOST,
) -> Path:
    """Returns the local path of a published file and downloads it where it is not there.

    What an earlier call left unfinished is continued. Of several processes or threads that ask
    for the same file one downloads it and the others wait. RES2NET_MM_MIRROR may name folders and
    http(s) addresses, separated by commas, that are asked before ``url`` for a file of its name; a
    file in a folder is used where it lies.

    Args:
        url: An http or https address that ends in a file name.
        sha256: Hex digits, 8 to 64, that the sha256 of the file begins with. By default those in
            its name (``name-<8 to 64 digits>.pth``, a date excepted); where there are none the
            content is not verified, and the file lies in a folder that is named by ``url``.
        md5: The 32 hex digits of the file's md5, where no sha256 is published.
        folder: Where the file is kept; by default ``cache_folder()``.
        timeout: Seconds in which a server has to send a KiB for each, or the connection is given
            up; after some in a row the call ends, and what came is kept for the next.
        most: Bytes that the file may have.

    Returns:
        The path of the complete file, verified if its sha256 or md5 is known.

    Raises:
        DownloadError: No source has the file or can be reached, what they have has another
            sha256 or more bytes than ``most``, or the folder cannot be written to; or an argument
            or RES2NET_MM_MIRROR makes no sense.
    """
    url = urldefrag(url).url
    name = _file_name(url)
    prefix = _prefix(sha256, md5, name)
    folder = cache_folder() if folder is None else Path(folder)
    if prefix is None:  # nothing but the address tells it from others of its name
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:10]
    path = folder / name
    # Errors of the network are turned into _Failed where they arise; an OSError is of the disk.
    try:
        problem = _problem(path, prefix)
        if not problem:
            return path
        if path.is_file():
            _log(f'{path} is replaced: {problem}')
        failures = {}
        for source in [*_mirrors(name), url]:
            try:
                return _from(source, path, prefix, timeout, most)
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


def _from(source: str | Path, path: Path, prefix: str | None, timeout: float, most: int) -> Path:
    if isinstance(source, Path):
        try:
            problem = _problem(source, prefix)
        except OSError as error:
            problem = f'it cannot be read ({error.strerror})'
        if problem:
            raise _Failed(problem)
        return source
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f'{path}.lock')
    patience = 1
    while not lock.is_locked:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            patience = _SAYING
            size = _Part(path).size()
            _log(f'waiting for another process, which is downloading {path} ({size} bytes so far)')
    try:
        if _problem(path, prefix):  # else another process was faster
            _download(source, path, prefix, timeout, most)
    finally:
        lock.release()
    return path


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ('http', 'https') and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number, or half an IPv6 address
        return False


def _file_name(url: str) -> str:
    if not _is_address(url):
        raise DownloadError(f'url must be an http or https address, but got {url!r}')
    name = unquote(urlsplit(url).path.rpartition('/')[2])
    if name in ('', '.', '..') or re.search(r'[/\\\0]', name):
        raise DownloadError(f'url must end in a file name, but got {url!r}')
    return name


def _prefix(sha256: str | None, md5: str | None, name: str) -> str | None:
    """What the file's sha256 begins with, or ``md5:`` and all of that."""
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


def _mirrors(name: str) -> list[str | Path]:
    """Where the mirrors have the file of this name, if they have it."""
    sources: list[str | Path] = []
    for mirror in filter(None, map(str.strip, os.environ.get(MIRROR, '').split(','))):
        if _is_address(mirror):
            sources.append(f'{mirror.rstrip("/")}/{quote(name)}')
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
        sources.append(Path(folder, name))
    return sources


def _problem(path: Path, prefix: str | None) -> str:
    """What is wrong with a file; nothing if it is the one that was asked for."""
    if not path.is_file():
        return 'there is no such file'
    kind, _, digits = (prefix or '').rpartition(':')
    actual = digest_of(path, kind or 'sha256') if digits else ''
    if actual.startswith(digits):
        return ''
    return f'its {kind or "sha256"} should begin with {digits}, but it is {actual}'


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal digits."""
    return digest_of(path, 'sha256')


def digest_of(path: Path, kind: str) -> str:
    """The digest of a file by hashlib's algorithm ``kind`` in hexadecimal digits."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, 'rb') as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _log(message: str) -> None:
    MMLogger.get_current_instance().info(message)


class _Part:
    """The beginning of a file, and beside it a note which content it is the beginning of."""

    def __init__(self, path: Path) -> None:
        self.packed = path.suffix in ('.gz', '.tgz')  # its coding is its content
        self.path = Path(f'{path}.part')
        self.note = Path(f'{path}.part.json')

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self, url: str) -> str | None:
        """The ETag or date that this address gave for the content, if it gave one."""
        try:
            note = json.loads(self.note.read_text())
            return note['validator'] if note['url'] == url else None
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # none, or half written
            return None

    def begin(self, url: str, validator: str | None) -> None:
        self.discard()  # before the note says anything new
        self.note.write_text(json.dumps(dict(url=url, validator=validator)))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _download(url: str, path: Path, prefix: str | None, timeout: float, most: int) -> None:
    part = _Part(path)
    # disable=None: shown on a terminal only
    with tqdm(desc=path.name, unit='B', unit_scale=True, unit_divisor=1024, disable=None) as bar:
        in_words = bar.disable
        if in_words:
            _log(f'downloading {url} to {path}')
        pieced = _receive(url, part, prefix, timeout, most, bar)
        problem = _problem(part.path, prefix)
        if problem and pieced:
            _log(f'{path.name}: the pieces do not fit together, downloading it anew')
            part.discard()
            _receive(url, part, prefix, timeout, most, bar)
            problem = _problem(part.path, prefix)
    if problem:
        part.discard()
        raise _Failed(problem)
    with open(part.path, 'rb+') as file:
        os.fsync(file.fileno())
    os.replace(part.path, path)
    part.discard()
    if in_words:
        _log(f'downloaded {path} ({path.stat().st_size / 2**20:.1f} MiB)')


def _receive(
    url: str, part: _Part, prefix: str | None, timeout: float, most: int, bar: tqdm
) -> bool:
    """Asks until the part is the whole file. Returns whether it consists of several pieces."""
    best, failures, connected = part.size(), 0, False
    while True:
        try:
            return _request(url, part, prefix, timeout, most, bar)
        except _Dropped as error:
            connected = connected or not isinstance(error, _Unreachable)
            if not connected:
                raise
            size = part.size()
            slow = isinstance(error, _Slow)
            failures = 0 if size > best and not slow else failures + 1
            best = max(best, size)
            if failures > _RETRIES:
                brought = 'little' if slow else 'no'
                raise _Dropped(
                    f'{error}, and {_RETRIES} further attempts brought {brought} more; the next '
                    f'call continues with the {size} bytes that are there'
                ) from error
            time.sleep(_WAIT * 2**failures)


def _request(
    url: str, part: _Part, prefix: str | None, timeout: float, most: int, bar: tqdm
) -> bool:
    """Asks once for what is missing. Returns whether the answer continued the part."""
    offset, kept = part.size(), part.validator(url)
    headers = {'Accept-Encoding': 'identity'}
    if offset and (prefix or kept):  # else nothing would tell a part of other content
        headers['Range'] = f'bytes={offset}-'
        if kept:
            headers['If-Range'] = kept
    try:
        response = _open(url, headers, timeout)
    except HTTPError as error:
        if error.code == 416 and 'Range' in headers:
            if prefix:
                return True  # the part is whole, or of something else: its sha256 will tell
            part.discard()
            raise _Dropped('the file is shorter than the part of it that is there') from error
        reason = ' '.join(str(error.reason).split())
        raise _Failed(f'the server answered {error.code} ({reason})') from error
    with response:
        start, total = _span(response)
        coding = response.headers.get('Content-Encoding', 'identity')
        if coding != 'identity' and not prefix and not part.packed:
            raise _Failed(
                f'the server sends it compressed (Content-Encoding: {coding}) though it was asked '
                'not to, and nothing tells whether that is the file'
            )
        if total is not None and total > most:
            raise _Failed(f'the server says it has {total} bytes, more than the {most} expected')
        validator = response.headers.get('ETag', 'W/')
        if validator.startswith('W/'):  # a weak one holds for similar content also
            validator = response.headers.get('Last-Modified')
        if start and (start != offset or not (prefix or kept == validator)):
            part.discard()
            raise _Dropped('the server continued with other bytes than were asked for')
        if not start:
            part.begin(url, validator)
        bar.total = total
        bar.n = bar.initial = bar.last_print_n = start  # else the rate would count it
        bar.refresh()
        with open(part.path, 'ab', buffering=0) as file:
            while data := memoryview(_read(response, timeout)):
                bar.update(len(data))
                if file.tell() + len(data) > most:
                    part.discard()
                    raise _Failed(f'the server sends more than the {most} bytes expected')
                while data:
                    data = data[file.write(data) :]
    if total is not None and part.size() != total:
        raise _Dropped(f'the connection broke off after {part.size()} of {total} bytes')
    return start > 0


def _span(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where in the file an answer begins (-1: unclear), and how large the file is, if known."""
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


class _Crawl(OSError):
    """Next to nothing came."""


class _Paced(io.RawIOBase):
    """What a socket receives, headers as well, as long as enough comes in each ``timeout`` s."""

    def __init__(self, received: io.RawIOBase, timeout: float) -> None:
        self.received, self.timeout = received, timeout
        self.since, self.came = None, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        number = self.received.readinto(buffer)
        now = time.monotonic()
        self.since = self.since or now  # of the first bytes: a server may have to think
        self.came += number or 0
        passed = now - self.since
        if number and passed > self.timeout:
            if self.came < _LEAST * passed:
                raise _Crawl(f'only {self.came} bytes came in {passed:.1f} s')
            self.since, self.came = None, 0
        return number

    def close(self) -> None:
        self.received.close()
        super().close()


class _Socket:
    """A socket whose file is paced."""

    def __init__(self, real: Any, timeout: float) -> None:
        self.real, self.timeout = real, timeout

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Paced(self.real.makefile(mode, buffering=0), self.timeout))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock = _Socket(self.sock, self.timeout)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


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


def _open(url: str, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    redirects = _Redirects(url)
    request = urllib.request.Request(
        quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={'User-Agent': 'res2net_mm', **headers}
    )
    try:
        return urllib.request.build_opener(redirects, _Http, _Https).open(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        raise
    except URLError as error:
        if isinstance(error.reason, _Crawl):
            raise _Slow(f'the server did not answer: {error.reason}') from error
        host = urlsplit(redirects.url).netloc
        raise _Unreachable(f'{host} could not be reached: {_why(error.reason, timeout)}') from error
    except (OSError, http.client.HTTPException) as error:
        kind = _Slow if isinstance(error, _Crawl) else _Dropped
        raise kind(f'the server did not answer: {_why(error, timeout)}') from error


def _read(response: http.client.HTTPResponse, timeout: float) -> bytes:
    try:
        return response.read1(_CHUNK)  # what is there: the rest may never come
    except _Crawl as error:
        raise _Slow(str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(f'the connection broke off: {_why(error, timeout)}') from error


def _why(error: Any, timeout: float) -> str:
    if isinstance(error, socket.gaierror):
        return 'its name could not be resolved (is this machine offline?)'
    if isinstance(error, ConnectionRefusedError):
        return 'it refused the connection'
    if isinstance(error, TimeoutError):
        return f'nothing came for {timeout:g} s'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__
