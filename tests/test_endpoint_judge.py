"""The endpoint judge against a real server on this machine that fails in the ways servers do."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.errors import InputError
from interp.judges import Endpoint, EndpointJudge, Judge, Question
from interp.judging.endpoint import read_answer
from tests.chat_endpoint import serving

MOOD = Question.choice("Which mood does the text have?", ["negative", "positive"])
TEXTS = ["good one", "bad one", "good two"]


class Server(ThreadingHTTPServer):
    """Answers "positive" to texts with "good"; `faults` are taken from the front, one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[Any] = []
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.slow = 0.0
        self.gate: threading.Barrier | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append(body)
            server.headers.append(dict(self.headers))
            fault = server.faults.pop(0) if server.faults else None
            server.running += 1
            server.most = max(server.most, server.running)
        if server.gate is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                server.gate.wait(5)
        with contextlib.suppress(OSError):  # a client that has given up
            self._reply(body, fault)
        with server.lock:
            server.running -= 1

    def _reply(self, body: dict[str, Any], fault: Any) -> None:
        if fault == "hang":
            time.sleep(1.0)
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(b'{"error": "because"}')
            return
        asked = body["messages"][-1]["content"].split("</text>")[0]
        said = (
            fault["say"]
            if isinstance(fault, dict) and "say" in fault
            else "positive"
            if "good" in asked
            else "Negative."
        )
        reply = {
            "choices": [{"message": {"role": "assistant", "content": said}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 2},
        }
        content = json.dumps(reply).encode()
        if fault == "nonsense":
            content = b"<html>it works</html>"
        if fault == "no choices":
            content = b'{"choices": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + (50 if fault == "cut off" else 0)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


def _endpoint(server: Server, **changes: Any) -> Endpoint:
    return Endpoint(server.url, "judge-1", **{"backoff": 0.01, "timeout": 5.0, "concurrency": 1, **changes})


def test_answers_cost_and_what_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = EndpointJudge(_endpoint(server, key_env="JUDGE_KEY", dollars_per_million=(1.0, 10.0)))
    assert isinstance(judge, Judge) and judge.name == "judge-1"
    scores = judge.score(TEXTS, MOOD, seed=5)
    assert scores.choice.tolist() == [1, 0, 1] and scores.n_failed == 0
    cost = scores.facts["cost"]
    assert cost["requests"] == 3 and cost["prompt_tokens"] == 300 and cost["retries"] == cost["cached"] == 0
    assert cost["dollars"] == pytest.approx((300 * 1 + 6 * 10) / 1e6)
    assert all(h["Authorization"] == "Bearer secret" for h in server.headers)
    assert {(b["model"], b["temperature"], b["seed"]) for b in server.seen} == {("judge-1", 0.0, 5)}
    assert "good one" in server.seen[0]["messages"][1]["content"]


@pytest.mark.parametrize("fault", [429, 500, 503, 408, "nonsense", "no choices", "cut off", "hang"])
def test_passing_faults_are_asked_again(server: Server, fault: Any):
    server.faults = [fault, fault]
    judge = EndpointJudge(_endpoint(server, timeout=0.3 if fault == "hang" else 5.0))
    assert judge.score(TEXTS[:1], MOOD).choice.tolist() == [1]
    assert judge.client.cost.retries == 2 and len(server.seen) == 3 and judge.client.cost.requests == 1


def test_what_was_paid_for_is_never_asked_again(server: Server, tmp_path: Path):
    """The third text fails for good; the run ends, and the next one asks for that text alone."""
    endpoint = _endpoint(server, cache=tmp_path, retries=1)
    server.faults = [None, None, 500, 500]
    with pytest.raises(InputError, match=r"no answer in 2 tries, the last of them: status 500 .*because.*in the cache"):
        EndpointJudge(endpoint).score(TEXTS, MOOD)
    assert len(server.seen) == 4
    again = EndpointJudge(endpoint)
    assert again.score(TEXTS, MOOD).choice.tolist() == [1, 0, 1]
    assert len(server.seen) == 5 and again.client.cost.cached == 2 and again.client.cost.requests == 1
    fresh = EndpointJudge(endpoint)
    fresh.score(TEXTS, MOOD)
    assert len(server.seen) == 5 and fresh.client.cost.to_json()["prompt_tokens"] == 0


@pytest.mark.parametrize("change", [{"model": "judge-2"}, {"temperature": 0.5}, {"max_tokens": 3}, "seed", "question"])
def test_other_settings_are_other_answers(server: Server, tmp_path: Path, change: Any):
    endpoint = _endpoint(server, cache=tmp_path)
    EndpointJudge(endpoint).score(TEXTS[:1], MOOD)
    changed = endpoint if isinstance(change, str) else replace(endpoint, **change)
    question = replace(MOOD, text="Is it nice?") if change == "question" else MOOD
    EndpointJudge(changed).score(TEXTS[:1], question, seed=1 if change == "seed" else 0)
    assert len(server.seen) == 2


def test_a_damaged_cache_file_is_asked_anew(server: Server, tmp_path: Path):
    endpoint = _endpoint(server, cache=tmp_path)
    EndpointJudge(endpoint).score(TEXTS[:1], MOOD)
    (file,) = tmp_path.glob("*/*.json")
    assert json.loads(file.read_text())["answer"] == "positive" and "secret" not in file.read_text()
    file.write_text('{"answ')
    assert EndpointJudge(endpoint).score(TEXTS[:1], MOOD).choice.tolist() == [1] and len(server.seen) == 2


def test_requests_run_side_by_side_and_answers_keep_their_order(server: Server):
    server.gate = threading.Barrier(4)  # opens only when four requests are there at once
    texts = [("good" if i % 3 else "bad") + f" {i}" for i in range(8)]
    scores = EndpointJudge(_endpoint(server, concurrency=4)).score(texts, MOOD)
    assert scores.choice.tolist() == [int(i % 3 > 0) for i in range(8)] and server.most == 4


def test_a_text_is_asked_alike_whatever_its_neighbours(server: Server):
    judge = EndpointJudge(_endpoint(server))
    judge.score(TEXTS, MOOD)
    judge.score(TEXTS[2:], MOOD)
    assert server.seen[2] == server.seen[3]
    many = [f"good {i}" for i in range(30)]
    judge.score(many, MOOD)
    orders = [b["messages"][1]["content"].split("answers: ")[1] for b in server.seen[4:]]
    assert {"negative, positive.", "positive, negative."} == set(orders), "the order of the options varies"


def test_refusals_end_at_once(server: Server, monkeypatch: pytest.MonkeyPatch):
    server.faults = [401]
    with pytest.raises(InputError, match=r"refuses the request with status 401: .*because"):
        EndpointJudge(_endpoint(server)).score(TEXTS, MOOD)
    assert len(server.seen) == 1, "not asked again"
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(InputError, match=r"JUDGE_KEY, for the key of .* is not set"):
        EndpointJudge(_endpoint(server, key_env="JUDGE_KEY")).score(TEXTS, MOOD)
    with pytest.raises(InputError, match="expected http://"):
        Endpoint("localhost:8000", "m")
    with pytest.raises(InputError, match="a concurrency of 1 or more"):
        _endpoint(server, concurrency=0)


def test_a_closed_port_is_reported_after_the_tries():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        judge = EndpointJudge(Endpoint(url, "m", retries=2, backoff=0.001))
        with pytest.raises(InputError, match="no answer in 3 tries, the last of them: URLError"):
            judge.score(TEXTS, MOOD)
    assert judge.client.cost.retries >= 2


def test_answers_that_name_no_option_are_counted(server: Server):
    server.faults = [{"say": "hard to tell"}, {"say": "positive or negative"}, {"say": None}]
    scores = EndpointJudge(_endpoint(server)).score(TEXTS, MOOD)
    assert scores.choice.tolist() == [-1, -1, -1] and scores.n_failed == 3
    assert np.isnan(scores.weights).all() and scores.facts["unread"] == ["hard to tell", "positive or negative", ""]


RATING = Question.rating("How good?")


@pytest.mark.parametrize(
    ("answer", "question", "expected"),
    [
        ("Positive.", MOOD, 1),
        ("**negative**", MOOD, 0),
        ("It is positive", MOOD, 1),
        ("nonpositive", MOOD, None),
        ("", MOOD, None),
        ("7", RATING, 7),
        ("10", RATING, 10),
        ("I would say 1.", RATING, 1),
        ("Rating: 10", RATING, 10),
        ("7.5", RATING, None),
        ("7/10", RATING, None),
        ("11", RATING, None),
        ("Yes!", Question.yes_no("Is it?"), 1),
        ("very good", Question.choice("?", ["good", "very good"]), 1),
    ],
)
def test_reading_answers(answer: str, question: Question, expected: int | None):
    assert read_answer(answer, question) == expected
