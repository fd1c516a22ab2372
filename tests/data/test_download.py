"""A download resumes where it broke, is verified, and appears only when complete."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mutransfer.data import download
from mutransfer.errors import InputError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `breaks` requests end after 100,000 bytes; `ranges` says whether Range is understood."""

    breaks = 0
    ranges = True
    content = CONTENT

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers["Range"]
        server.requests.append(asked)
        if self.path != "/file":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[:100_000]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_an_interrupted_download_resumes_by_range(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    said: list[str] = []
    path = download(server.url, tmp_path / "deep" / "file", SHA256, progress=said.append)
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=200000-"]
    assert said and "MB" in said[0]
    assert sorted(p.name for p in path.parent.iterdir()) == ["file", "manifest.json"]


def test_a_part_of_an_earlier_call_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:250_000])
    assert download(server.url, tmp_path / "file", SHA256).read_bytes() == CONTENT
    assert server.requests == ["bytes=250000-"]


def test_a_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"other bytes")
    assert download(server.url, tmp_path / "file", SHA256).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 400_000)
    assert download(server.url, tmp_path / "file", SHA256).read_bytes() == CONTENT
    assert server.requests == ["bytes=400000-", None]


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"y" * 100_000)  # the start of another file
    with pytest.raises(InputError, match="checksum"):
        download(server.url, tmp_path / "file", SHA256)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("checksum", [SHA256, "md5:" + hashlib.md5(CONTENT, usedforsecurity=False).hexdigest(), ""])
def test_a_finished_download_is_verified_and_not_fetched_again(server: Server, tmp_path: Path, checksum: str) -> None:
    path = download(server.url, tmp_path / "file", checksum)
    download(server.url, path, checksum)
    assert len(server.requests) == 1
    path.write_bytes(CONTENT[:-1] + b"!")  # without a published checksum the first download is the reference
    with pytest.raises(InputError, match="damaged or another file"):
        download(server.url, path, checksum)


def test_without_a_published_checksum_the_first_one_counts(server: Server, tmp_path: Path) -> None:
    path = download(server.url, tmp_path / "file")
    assert json.loads((tmp_path / "manifest.json").read_text())["file"]["sha256"] == SHA256[7:]
    path.unlink()
    server.content = CONTENT + b"more"
    with pytest.raises(InputError, match="checksum"):
        download(server.url, path)


def test_a_missing_page_fails_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"HTTP 404.*: put it there"):
        download(server.url + "s", tmp_path / "folder" / "file", advice="put it there")
    assert len(server.requests) == 1
    assert not (tmp_path / "folder").exists()


def test_what_has_arrived_is_kept_when_the_network_goes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.breaks = 1
    handler = Handler.do_GET

    def once(self: Handler) -> None:
        handler(self) if not server.requests else self.send_error(503)

    monkeypatch.setattr(Handler, "do_GET", once)
    with pytest.raises(InputError, match=r"503.*first 100,000 bytes are kept"):
        download(server.url, tmp_path / "file", SHA256)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:100_000]
