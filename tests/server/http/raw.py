"""HTTP as bytes on a socket, with what a library would not send."""

import json
import socket
import ssl
from contextlib import contextmanager
from urllib.parse import urlsplit

SECONDS = 60.0  # for any answer


class Answer:
    """One answer: status, headers by their small names, body."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        assert self.headers["content-type"].startswith("application/json"), (self.status, self.body)
        return json.loads(self.body)

    @property
    def error(self):
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return error


class Wire:
    """A connection to a server."""

    def __init__(self, connected):
        self.socket, self.file = connected, connected.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def answer(self):
        """Read one answer."""
        line = self.file.readline()
        if not line:
            raise ConnectionError("closed without an answer")
        status, headers = int(line.split()[1]), {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if status == 100:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(self.chunks()))
        return Answer(status, headers, self.file.read(int(headers.get("content-length", 0))))

    def chunks(self):
        """The chunks of a body."""
        while size := int(self.file.readline(), 16):
            yield self.file.read(size)
            self.file.readline()
        self.file.readline()

    def head(self):
        """Read a status line and headers; the body stays."""
        status = int(self.file.readline().split()[1])
        while self.file.readline() not in (b"\r\n", b""):
            pass
        return status

    def closed(self):
        """Wait until the server closes; returns what came before."""
        try:
            return self.file.read()
        except ConnectionError:
            return b""


@contextmanager
def connection(url, context=None, buffer=None):
    """A connection to the server at a URL; `buffer` bytes are received before somebody reads."""
    where = urlsplit(url)
    plain = socket.socket()
    if buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    plain.settimeout(SECONDS)
    plain.connect((where.hostname, where.port))
    with plain if context is None else context.wrap_socket(plain, server_hostname=where.hostname) as connected:
        wire = Wire(connected)
        try:
            yield wire
        finally:
            wire.file.close()


def post(body, path="/v1/completions", headers=(), length=None, method="POST"):
    """The bytes of a request; `body` is bytes, or becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    if length is not False:
        lines.append(f"Content-Length: {len(data) if length is None else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("utf-8", "surrogateescape") + data


def exchanged(url, data, context=None):
    """Send bytes over a connection of their own; returns the answer."""
    with connection(url, context) as wire:
        wire.send(data)
        return wire.answer()


def ssl_trusting(authority, pair=None):
    """A context that trusts one authority, perhaps with a certificate and its key."""
    context = ssl.create_default_context(cafile=authority)
    if pair is not None:
        context.load_cert_chain(*pair)
    return context
