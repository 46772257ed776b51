"""An OpenAI-compatible chat endpoint: retries with backoff, a cache on disk, what it cost.

    folder/<first two digits>/<sha256 of url, model, messages, settings>.json       one answer each, sealed

An answer is written before it is used, so that a run that was cut off asks for nothing it has already paid for. Asked
again are only: status 408, 409, 429 and 5xx, a connection that fails or times out, and a reply that is no reply
(truncated or not of the documented shape). The wait is backoff · 2^try, at least what `Retry-After` asks, at most a
minute. Other statuses are the caller's mistake (key, model, request) and raise at once with what the server said.
"""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.progress import bar
from interp.sealing import NOT_JSON, digest, write_json

_AGAIN = frozenset((408, 409, 429))
_LONGEST_WAIT = 60.0
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how."""

    url: str
    """Up to and without `/chat/completions`, such as `http://localhost:8000/v1`."""
    model: str
    key_env: str | None = None
    """The environment variable that holds the key; None for servers that want none."""
    cache: Path | None = None
    """Folder of answers; None asks everything anew."""
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 8
    temperature: float = 0.0
    max_tokens: int = 16
    dollars_per_million: tuple[float, float] = (0.0, 0.0)
    """Price of a million prompt tokens and of a million completion tokens."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"the endpoint {self.url!r} is no address; expected http://... or https://...")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise InputError(
                f"endpoint: expected a concurrency of 1 or more, 0 retries or more and a timeout above 0, got "
                f"{self.concurrency}, {self.retries} and {self.timeout}"
            )

    def key(self) -> str | None:
        """The key, from the environment."""
        if self.key_env is None:
            return None
        if not (key := os.environ.get(self.key_env, "").strip()):
            raise InputError(f"the environment variable {self.key_env}, for the key of {self.url}, is not set")
        return key

    def body(self, messages: Messages, seed: int) -> dict[str, Any]:
        """What is sent."""
        return {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }


@dataclass
class Cost:
    """What was asked for so far. Counted under a lock: requests run side by side."""

    requests: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars_per_million: tuple[float, float] = (0.0, 0.0)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    @property
    def dollars(self) -> float:
        """Paid, at the endpoint's prices; cached answers cost nothing."""
        prompt, completion = self.dollars_per_million
        return (self.prompt_tokens * prompt + self.completion_tokens * completion) / 1e6

    def to_json(self) -> dict[str, float]:
        """All counts."""
        names = ("requests", "cached", "retries", "prompt_tokens", "completion_tokens")
        return {**{name: getattr(self, name) for name in names}, "dollars": self.dollars}


class _Retry(Exception):
    """A failure worth asking again, and how long the server wants us to wait."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Client:
    """Asks an endpoint; `cost` adds up over its life."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.cost = endpoint, Cost(dollars_per_million=endpoint.dollars_per_million)
        self._key = endpoint.key()

    def ask_all(self, asked: Iterable[Messages], *, seed: int = 0, show: bool | None = False) -> list[str]:
        """The answer to each, in order; after the first failure nothing more is asked, what was answered is kept."""
        asked, ended = list(asked), threading.Event()

        def one_by_one(messages: Messages) -> str:
            if ended.is_set():
                raise CancelledError
            try:
                return self.ask(messages, seed=seed)
            except BaseException:
                ended.set()
                raise

        with (
            ThreadPoolExecutor(self.endpoint.concurrency) as pool,
            bar(len(asked), f"asking {self.endpoint.model}", show=show, unit="text") as progress,
        ):
            waiting = [pool.submit(one_by_one, messages) for messages in asked]
            for one in as_completed(waiting):
                if one.exception() is None:
                    progress.update()
        if failures := [error for one in waiting if (error := one.exception()) is not None]:
            raise next((error for error in failures if not isinstance(error, CancelledError)), failures[0])
        return [one.result() for one in waiting]

    def ask(self, messages: Messages, *, seed: int = 0) -> str:
        """The text of the answer, from the cache or from the endpoint."""
        body = self.endpoint.body(messages, seed)
        path = self._path(body)
        if path is not None and (kept := _kept(path)) is not None:
            self.cost.add(cached=1)
            return kept
        reply = self._asked(body)
        text, counts = _parsed(reply)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"answer": text, "usage": counts, "request": body})
        self.cost.add(requests=1, **counts)
        return text

    def _path(self, body: dict[str, Any]) -> Path | None:
        if self.endpoint.cache is None:
            return None
        name = digest({"url": self.endpoint.url, **body})
        return Path(self.endpoint.cache) / name[:2] / f"{name}.json"

    def _asked(self, body: dict[str, Any]) -> Any:
        for attempt in range(self.endpoint.retries + 1):
            try:
                return _checked(self._once(body))
            except _Retry as failure:
                if attempt == self.endpoint.retries:
                    raise InputError(
                        f"{self.endpoint.url} gave no answer in {attempt + 1} tries, the last of them: {failure}. "
                        "Answers received so far are in the cache; run the same again once it answers"
                    ) from failure
                self.cost.add(retries=1)
                time.sleep(min(_LONGEST_WAIT, max(failure.wait, self.endpoint.backoff * 2**attempt)))
        raise AssertionError("unreachable")

    def _once(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            self.endpoint.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.endpoint.timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode("utf-8", "replace")
            if error.code in _AGAIN or error.code >= 500:
                raise _Retry(f"status {error.code} ({said[:200]})", _retry_after(error.headers)) from error
            raise InputError(f"{self.endpoint.url} refuses the request with status {error.code}: {said}") from error
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
            raise _Retry(f"{type(error).__name__}: {error}") from error
        except NOT_JSON as error:
            raise _Retry(f"a reply that is not JSON ({error})") from error


def _retry_after(headers: Any) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", 0)))
    except (TypeError, ValueError):
        return 0.0


def _checked(reply: Any) -> Any:
    """Refuse a reply that is not of the documented shape."""
    try:
        _parsed(reply)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise _Retry(f"a reply without choices[0].message.content: {json.dumps(reply)[:200]}") from error
    return reply


def _parsed(reply: Any) -> tuple[str, dict[str, int]]:
    """The text of a reply, and the tokens it took."""
    content, usage = reply["choices"][0]["message"]["content"], reply.get("usage") or {}
    counts = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
    return ("" if content is None else str(content)), counts


def _kept(path: Path) -> str | None:
    """A cached answer; a damaged file counts as none."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["answer"])
    except (OSError, *NOT_JSON, KeyError, TypeError):
        return None
