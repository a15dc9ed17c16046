"""A file server on this machine that can be told to misbehave."""

from __future__ import annotations

import re
import socket
import struct
import threading
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Behaviour:
    """How a path is served; without any of it, as a good server does.

    Args:
        status: Answered instead of the file.
        location: With ``status`` 30x: where the client is sent.
        drop_after: Bytes of the answer's body after which the connection is closed, ``drops``
            times; ``reset`` closes it with a reset instead of an end.
        truncate: The file ends after so many bytes, whatever its Content-Length says.
        stalls: The connection stays open after the last byte that is sent.
        trickle: Bytes that are sent at a time, and seconds between.
        ranges: Range is understood.
        linked_etag: Sent as X-Linked-Etag, as the Hugging Face hub does with a redirect.
        length: Content-Length is sent.
        kind: Sent as Content-Type.
        becomes: Content from the second request on.
    """

    status: int = 200
    location: str = ''
    drop_after: int | None = None
    drops: int = 1
    reset: bool = False
    truncate: int | None = None
    stalls: bool = False
    trickle: tuple[int, float] | None = None
    ranges: bool = True
    linked_etag: str = ''
    length: bool = True
    kind: str = 'application/octet-stream'
    becomes: bytes | None = None


@dataclass
class Asked:
    """A request as it came."""

    path: str
    range: str | None


class FileServer:
    """Serves a folder while it is entered; ``asked`` holds the requests in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Asked] = []
        self.behaviours: dict[str, Behaviour] = {}
        self.closing = threading.Event()
        owner = self

        class Handler(_Handler):
            files = owner

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FileServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def address(self, name: str = '') -> str:
        return f'http://127.0.0.1:{self.http.server_port}/{name}'

    def behave(self, name: str, **how: object) -> None:
        self.behaviours[name] = Behaviour(**how)

    def ranges(self, name: str) -> list[str | None]:
        """The Range header of each request for a path."""
        return [asked.range for asked in self.asked if asked.path == f'/{name}']


class _Handler(BaseHTTPRequestHandler):
    files: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition('?')[0]
        name = urllib.parse.unquote(path[1:])
        asked = Asked(path, self.headers['Range'])
        first = path not in {earlier.path for earlier in self.files.asked}
        self.files.asked.append(asked)
        how = self.files.behaviours.setdefault(name, Behaviour())
        file = self.files.folder / name
        if how.status != 200 or not file.is_file():
            self.send_response(how.status if how.status != 200 else 404)
            if how.location:
                self.send_header('Location', how.location)
            if how.linked_etag:
                self.send_header('X-Linked-Etag', how.linked_etag)
            self.end_headers()
            return
        content = file.read_bytes()
        if how.becomes is not None and not first:
            content = how.becomes
        self.serve(content, asked, how)

    def serve(self, content: bytes, asked: Asked, how: Behaviour) -> None:
        start = 0
        if how.ranges and asked.range:
            start = int(re.fullmatch(r'bytes=(\d+)-', asked.range)[1])
        if start and start >= len(content):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(content)}')
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', how.kind)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        if how.length:
            self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if how.truncate is not None:
            body = content[start : how.truncate]
        drop = how.drop_after is not None and how.drops > 0
        if drop:
            how.drops -= 1
            body = body[: how.drop_after]
        self.send(body, how)
        if how.stalls:
            self.files.closing.wait()
        if drop and how.reset:
            linger = struct.pack('ii', 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def send(self, body: bytes, how: Behaviour) -> None:
        size, pause = how.trickle or (max(1, len(body)), 0)
        try:
            for at in range(0, len(body), size):
                self.wfile.write(body[at : at + size])
                if pause and self.files.closing.wait(pause):
                    return
        except OSError:  # the client went away
            pass
