"""A web server on 127.0.0.1 that holds gallery files: answers If-None-Match and If-Modified-Since, fails, waits, redirects."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DEADLINE = 20.0


@dataclass(frozen=True)
class Asked:
    path: str
    headers: Message
    status: int


@dataclass
class GalleryServer:
    """Use as a context manager. `files`: path -> body. `statuses`, `redirects`, `held`: what else a path answers; a held one
    waits for its event before the body. `validators`: which of ETag and Last-Modified are sent."""

    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    validators: tuple[str, ...] = ("ETag",)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                return

            def do_GET(self) -> None:
                server._answer(self)

        self._changed = threading.Condition()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> GalleryServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), name="gallery server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        for event in self.held.values():
            event.set()
        self._http.shutdown()
        self._http.server_close()

    def seen(self, path: str) -> list[int]:
        """The statuses that a path has answered."""
        return [asked.status for asked in list(self.asked) if asked.path == path]

    def wait_for(self, path: str, count: int = 1) -> None:
        """Until a path has been asked for so many times."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.seen(path)) >= count, DEADLINE):
                raise TimeoutError(f"{path} was asked for {len(self.seen(path))} times, not {count}")

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        body = self.files.get(path, b"")
        headers: dict[str, Any] = dict(self.headers)
        status = self.statuses.get(path, 200 if path in self.files else 404)
        if path in self.redirects:
            status, headers["Location"] = 302, self.redirects[path]
        etag, modified = f'"{hashlib.sha256(body).hexdigest()[:16]}"', f"Mon, 01 Jan 2024 00:00:{len(body) % 60:02} GMT"
        if status == 200:
            told = {"ETag": etag, "Last-Modified": modified}
            headers |= {name: told[name] for name in self.validators}
            asked = request.headers.get("If-None-Match"), request.headers.get("If-Modified-Since")
            if ("ETag" in self.validators and asked[0] == etag) or ("Last-Modified" in self.validators and asked[1] == modified):
                status, body = 304, b""
        with self._changed:
            self.asked.append(Asked(path, request.headers, status))
            self._changed.notify_all()
        if (event := self.held.get(path)) is not None:
            event.wait(DEADLINE)
        try:
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            if status != 304:
                request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
        except ConnectionError:
            return
