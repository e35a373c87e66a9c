"""A Hugging Face Hub on 127.0.0.1 that speaks the real protocol, with faults to inject. Usable from other processes.

Two servers, as on the Hub: `url` for the API, and a storage host that redirects of LFS files lead to (signed, expiring).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

DEADLINE = 20.0
PIECE = 32 << 10


@dataclass(frozen=True)
class Seen:
    """One request and its answer's status. `host` is "hub" or "storage"; `name` is "repo/file" where it is about one;
    `headers` are looked up without regard to case.
    """

    host: str
    method: str
    path: str
    headers: Message
    status: int
    name: str = ""


@dataclass(frozen=True)
class Entry:
    """A file at a commit."""

    data: bytes | Path
    size: int
    etag: str
    lfs: bool


@dataclass
class Repo:
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    task: str | None = None


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match."""

    matches: Callable[[str, str, str], bool]
    times: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    hold_after: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    flip: bool = False
    no_range: bool = False
    skip: int = 0
    least: int = 0


class LoopbackHub:
    """`add` files, inject faults, look at `requests` and `bytes_sent`. Use as a context manager, or start() and stop().

    `name` arguments are a file's path, or "owner/repo/path" where several repos have the same.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Seen] = []
        self.bytes_sent: Counter[str] = Counter()
        self.token = "hf_loopback"
        """Opens gated and private repos."""
        self._faults: list[Fault] = []
        self._by_etag: dict[str, tuple[str, Entry]] = {}
        self._changed = threading.Condition()
        self._links = 0
        self._servers = [_Server(self, "hub"), _Server(self, "storage")]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> LoopbackHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), name=f"loopback {server.role}", daemon=True).start()

    def stop(self) -> None:
        for fault in self._faults:
            fault.release.set()
        for server in self._servers:
            server.shutdown()
            server.cut_all()
            server.server_close()

    # What it holds

    def add(
        self,
        repo: str,
        name: str,
        data: bytes | Path,
        lfs: bool = True,
        revision: str = "main",
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Commit a file to a branch; returns the commit, which holds the branch's earlier files too."""
        held = self.repos.setdefault(repo, Repo())
        held.gated, held.private = held.gated or gated, held.private or private
        entry = _entry(data, lfs)
        files = {**held.commits.get(held.refs.get(revision, ""), {}), name: entry}
        commit = hashlib.sha1(json.dumps([repo, sorted((n, e.etag) for n, e in files.items())]).encode()).hexdigest()
        held.commits[commit] = files
        held.refs[revision] = commit
        self._by_etag[entry.etag] = (f"{repo}/{name}", entry)
        return commit

    def describe(self, repo: str, card: dict[str, Any] | None = None, task: str | None = None) -> None:
        """The repo's card as its YAML head has it (`license`, ...), and its pipeline tag."""
        held = self.repos.setdefault(repo, Repo())
        held.card, held.task = card or {}, task

    def commit(self, repo: str, revision: str = "main") -> str:
        return self.repos[repo].refs[revision]

    def expire_links(self) -> None:
        """Links handed out so far answer 403 from now on."""
        self._links += 1

    # What goes wrong

    def fail(
        self,
        status: int,
        times: int = 1,
        name: str = "",
        method: str = "",
        host: str = "",
        headers: dict[str, str] | None = None,
        after: int = 0,
    ) -> None:
        """The next `times` requests (of a file, of a method, to a host) answer `status`, when `after` more have passed."""
        self._faults.append(Fault(_matcher(name, method, host), times, status, headers or {}, skip=after))

    def cut(self, name: str, after: int, times: int = 1, least: int = 0) -> None:
        """Close the connection after `after` bytes of an answer's body; of answers with `least` bytes or more only, as reads of
        a header are not meant where a download is."""
        self._faults.append(Fault(_matcher(name, "GET", ""), times, cut_after=after, least=least))

    def hold(self, name: str, after: int, times: int = 1, least: int = 0) -> threading.Event:
        """Send `after` bytes of an answer's body, then nothing until the event is set. `least` as of `cut`."""
        fault = Fault(_matcher(name, "GET", ""), times, hold_after=after, least=least)
        self._faults.append(fault)
        return fault.release

    def corrupt(self, name: str, times: int = 1, least: int = 0) -> None:
        """Send wrong bytes, as many as the right ones. `least` as of `cut`."""
        self._faults.append(Fault(_matcher(name, "GET", ""), times, flip=True, least=least))

    def ignore_range(self, name: str, times: int = 1) -> None:
        """Answer 200 and the whole file whatever Range asks."""
        self._faults.append(Fault(_matcher(name, "GET", ""), times, no_range=True))

    # What was seen

    def wait_for_bytes(self, name: str, count: int, timeout: float = DEADLINE) -> None:
        """Until `count` bytes of a file's contents have been sent, over all requests."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.sent(name) >= count, timeout):
                raise TimeoutError(f"{self.sent(name)} of {count} bytes of {name} sent after {timeout} s")

    def wait_for_requests(self, count: int, timeout: float = DEADLINE) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, timeout):
                raise TimeoutError(f"{len(self.requests)} of {count} requests after {timeout} s")

    def sent(self, name: str) -> int:
        """Bytes of a file's contents sent, over all requests."""
        return sum(count for key, count in list(self.bytes_sent.items()) if _is_named(key, name))

    def seen(self, method: str = "", name: str = "", host: str = "") -> list[Seen]:
        matches = _matcher(name, method, host)
        return [seen for seen in list(self.requests) if matches(seen.name, seen.method, seen.host)]

    # For the handler

    def _record(self, seen: Seen) -> None:
        with self._changed:
            self.requests.append(seen)
            self._changed.notify_all()

    def _count(self, name: str, sent: int) -> None:
        with self._changed:
            self.bytes_sent[name] += sent
            self._changed.notify_all()

    def _fault(self, name: str, method: str, host: str, wants: Callable[[Fault], bool]) -> Fault | None:
        with self._changed:
            for fault in self._faults:
                if fault.times <= 0 or not wants(fault) or not fault.matches(name, method, host):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _sign(self, etag: str) -> str:
        return hmac.new(b"loopback", f"{etag} {self._links}".encode(), "sha256").hexdigest()[:32]


def _is_named(full: str, name: str) -> bool:
    return full == name or full.endswith("/" + name)


def _matcher(name: str, method: str, host: str) -> Callable[[str, str, str], bool]:
    return lambda n, m, h: (not name or _is_named(n, name)) and method in ("", m) and host in ("", h)


def _entry(data: bytes | Path, lfs: bool) -> Entry:
    """Etags as on the Hub: sha256 of LFS files, git's blob id of others."""
    content = data.read_bytes() if isinstance(data, Path) else data
    size = len(content)
    etag = hashlib.sha256(content).hexdigest() if lfs else hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
    return Entry(data, size, etag, lfs)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, role: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.role = hub, role
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `requests` records them."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        if self.server.role == "storage":
            return self._storage(url.path, parse_qs(url.query))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
            return self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", url.path):
            blobs = parse_qs(url.query).get("blobs", [""])[0].lower() in ("true", "1")
            return self._api(match[1], match[2] or "revision", unquote(match[3] or "main"), blobs)
        return self._error(404, "", "no such address")

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        name = f"{repo}/{file}"
        if self._failed(name) or not (commit := self._admitted(repo, revision, name, gate=True)):
            return None
        entry = self.server.hub.repos[repo].commits[commit].get(file)
        if entry is None:
            return self._error(404, "EntryNotFound", "Entry not found", name, {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not entry.lfs:
            return self._contents(name, entry, f'"{entry.etag}"', headers)
        hub = self.server.hub
        link = (
            f"{hub.storage_url}/repos/{entry.etag}?response-content-disposition={quote(file)}&Signature={hub._sign(entry.etag)}"
        )
        headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size), "Location": link}
        headers |= {"ETag": f'"{hashlib.md5(entry.etag.encode()).hexdigest()}"', "Vary": "Origin, Accept"}
        return self._body(302, f"Found. Redirecting to {link}".encode(), headers, name)

    def _storage(self, path: str, query: dict[str, list[str]]) -> None:
        etag = path.rsplit("/", 1)[-1]
        hub = self.server.hub
        name, entry = hub._by_etag.get(etag, ("", None))
        if self._failed(name):
            return None
        if entry is None or query.get("Signature") != [hub._sign(etag)]:
            return self._body(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"}, name)
        # The storage's own validator is not the Hub's: S3 answers an MD5 of parts.
        return self._contents(name, entry, f'"{hashlib.md5(etag.encode()).hexdigest()}-2"', {"Accept-Ranges": "bytes"})

    def _api(self, repo: str, kind: str, revision: str, blobs: bool) -> None:
        if self._failed(repo) or not (commit := self._admitted(repo, revision, repo, gate=False)):
            return None
        held = self.server.hub.repos[repo]
        files = held.commits[commit]
        if kind == "tree":
            return self._json(200, [_tree_item(name, entry) for name, entry in sorted(files.items())], repo)
        info = {"id": repo, "modelId": repo, "sha": commit, "private": held.private, "gated": "manual" if held.gated else False}
        tags = [f"license:{held.card['license']}"] if isinstance(held.card.get("license"), str) else []
        info |= {"tags": tags} | ({"cardData": held.card} if held.card else {})
        info |= {"pipeline_tag": held.task} if held.task else {}
        return self._json(200, info | {"siblings": [_sibling(name, files[name], blobs) for name in sorted(files)]}, repo)

    def _admitted(self, repo: str, revision: str, name: str, gate: bool) -> str | None:
        """The commit, when this client may see it; else the error has been sent. Files are gated, the repo's page is not."""
        hub = self.server.hub
        held = hub.repos.get(repo)
        said = self.headers.get("Authorization")
        known = said == f"Bearer {hub.token}"
        if said and not known:
            self._error(401, "", "Invalid credentials in Authorization header", name)
        elif held is None or (held.private and not known):
            # The Hub tells nobody without a token whether a repo exists.
            self._error(404 if known else 401, "RepoNotFound", "Repository not found", name)
        elif held.gated and gate and not known:
            self._error(403 if said else 401, "GatedRepo", f"Access to model {repo} is restricted.", name)
        else:
            commit = revision if revision in held.commits else held.refs.get(revision)
            if commit is None:
                self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}", name)
            return commit
        return None

    def _failed(self, name: str) -> bool:
        """Send the status that a test asked for, if one did."""
        fault = self.server.hub._fault(name, self.command, self.server.role, lambda fault: fault.status > 0)
        if fault is None:
            return False
        self._body(fault.status, b"asked for by the test", fault.headers, name)
        return True

    def _contents(self, name: str, entry: Entry, etag: str, headers: dict[str, str]) -> None:
        """A file's bytes, by Range and If-Range (RFC 9110, sections 13.1.5 and 14)."""
        data = entry.data.read_bytes() if isinstance(entry.data, Path) else entry.data
        fault = None
        start, end, status = 0, entry.size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.command == "GET":
            size = min(int(asked[2] or entry.size - 1) + 1, entry.size) - int(asked[1]) if asked else entry.size
            fault = self.server.hub._fault(name, "GET", self.server.role, lambda fault: fault.status == 0 and size >= fault.least)
        if asked and self.headers.get("If-Range", etag) == etag and not (fault and fault.no_range):
            start, end, status = int(asked[1]), min(int(asked[2] or entry.size - 1) + 1, entry.size), 206
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{entry.size}"}
            if start >= entry.size:
                return self._body(416, b"", headers | {"Content-Range": f"bytes */{entry.size}"}, name)
        body = data[start:end]
        if fault and fault.flip:
            body = bytes(byte ^ 0xFF for byte in body)
        return self._body(status, body, headers | {"ETag": etag}, name, fault, counted=True)

    def _body(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        name: str = "",
        fault: Fault | None = None,
        counted: bool = False,
    ) -> None:
        hub = self.server.hub
        hub._record(Seen(self.server.role, self.command, self.path, self.headers, status, name))
        self.send_response(status)
        for key, value in ({"Content-Type": "application/octet-stream", "Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = min([len(body), *[at for at in (fault and fault.cut_after, fault and fault.hold_after) if at is not None]])
        self._send(name, body[:stop], counted)
        if fault and fault.cut_after is not None and stop < len(body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault and fault.hold_after is not None:
            fault.release.wait(DEADLINE)
            self._send(name, body[stop:], counted)

    def _send(self, name: str, body: bytes, counted: bool) -> None:
        for at in range(0, len(body), PIECE):
            piece = body[at : at + PIECE]
            self.wfile.write(piece)
            if counted:
                self.server.hub._count(name, len(piece))

    def _json(self, status: int, value: object, name: str) -> None:
        self._body(status, json.dumps(value).encode(), {"Content-Type": "application/json"}, name)

    def _error(self, status: int, code: str, message: str, name: str = "", headers: dict[str, str] | None = None) -> None:
        told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})
        self._body(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json"} | told, name)


def _sibling(name: str, entry: Entry, blobs: bool) -> dict[str, object]:
    """As GET /api/models/{repo} lists a file; with ?blobs=true its size and checksum too."""
    if not blobs:
        return {"rfilename": name}
    item: dict[str, object] = {"rfilename": name, "blobId": entry.etag[:40], "size": entry.size}
    if entry.lfs:
        item["lfs"] = {"sha256": entry.etag, "size": entry.size, "pointerSize": 135}
    return item


def _tree_item(name: str, entry: Entry) -> dict[str, object]:
    item: dict[str, object] = {"type": "file", "oid": entry.etag[:40], "size": entry.size, "path": name}
    if entry.lfs:
        item["lfs"] = {"oid": entry.etag, "size": entry.size, "pointerSize": 135}
    return item
