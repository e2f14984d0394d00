"""One HTTP connection of uvicorn's, with bounds on how long and how large a request's head may be."""

from __future__ import annotations

import socket
from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
HEAD_SECONDS = 15.0
GOODBYE = 1.0
LAST_SECONDS = 1.0        # in which who is connected may still ask, once the server stops


class Connection(HttpToolsProtocol):

    _timer: TimerHandle | None = None
    _bytes = 0
    _in_head = True
    _last = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio does so only for sockets that were made with a protocol's number; an answer's body must not wait for
        # the client to acknowledge its head, which takes 40 ms
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._bytes += len(data)
            if self._timer is None:
                self._expect_head()
        super().data_received(data)
        if self._in_head and self._bytes > HEAD_BYTES:
            self._end(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        self._in_head, self._bytes = False, 0
        self._stop()
        super().on_headers_complete()
        if self._last and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

    def eof_received(self) -> bool:
        """Who has sent a whole request and closes its side still reads the answer; TLS has no half-closed connections.
        """
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete and not cycle.more_body
        if answering:
            cycle.keep_alive = False
        return answering and not self._is_tls()

    def shutdown(self) -> None:
        """A request may be on its way already: what is idle is closed a little later, or behind that answer."""
        self._last = True
        if self._is_idle():
            self.loop.call_later(LAST_SECONDS, self._close)
        else:
            self._close()

    def _close(self) -> None:
        super().shutdown()
        self._goodbye()

    def _is_idle(self) -> bool:
        return self._in_head and (self.cycle is None or self.cycle.response_complete)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._goodbye()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop()
        super().connection_lost(error)

    def _goodbye(self) -> None:
        """A TLS connection that is being closed waits for its other side to say so, too; not for 30 seconds."""
        if self.transport.is_closing() and self._is_tls():
            self.loop.call_later(GOODBYE, self.transport.abort)

    def _is_tls(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._end, b"408 Request Timeout")

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, status: bytes) -> None:
        self._stop()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
