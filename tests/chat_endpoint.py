"""An OpenAI-compatible endpoint on this machine, for tests of judges: what it answers is up to the test."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 2}
Reply = Callable[[dict[str, Any]], str | None]


class ChatServer(ThreadingHTTPServer):
    """Answers every request with what `reply` says to its body; None refuses it (401). `seen`: bodies answered.

    After `last` answers, where given, it is gone for good: connections are refused from then on, as of a process that
    was killed."""

    daemon_threads = True

    def __init__(self, reply: Reply, *, port: int = 0, last: int | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.reply, self.seen, self.lock, self.last = reply, list[dict[str, Any]](), threading.Lock(), last

    def gone(self) -> None:
        """Nobody listens any more."""
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            said = self.server.reply(body)
            if said is not None:
                self.server.seen.append(body)
            if len(self.server.seen) == self.server.last:
                threading.Thread(target=self.server.gone).start()
        reply = {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": USAGE}
        content = json.dumps(reply).encode() if said is not None else b""
        with contextlib.suppress(OSError):  # a client that is gone
            self.send_response(200 if said is not None else 401)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[Any]:
    """The server, answering in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
