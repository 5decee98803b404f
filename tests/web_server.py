"""Web servers of tests, and storages that fail: nobody waits before the next attempt."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from tenacity import wait_none

from vipolyqwen_core.corpus.readers.remote_folders import _listed, _listed_by
from vipolyqwen_core.corpus.storage import RemoteFile, find_file, is_folder


class QuietHandler(BaseHTTPRequestHandler):
    """Answers without a line in the output of the tests."""

    def answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Answer whole; who asks for the head alone gets no content."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Be silent."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server, which answers until the end of the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever asks a storage again do so at once."""
    for patient in (RemoteFile._num_bytes, RemoteFile._part, _listed, _listed_by, find_file, is_folder):
        monkeypatch.setattr(patient.retry, "wait", wait_none())


def answered_by_s3(error: Exception, status: int) -> Exception:
    """As s3fs raises it of botocore's errors."""
    error.__cause__ = cause = Exception("An error occurred when calling the HeadObject operation")
    cause.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    return error
