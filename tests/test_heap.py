"""`interp.heap`: freed memory leaves the process when a job ends; where the C library cannot do it nothing breaks.

The pieces of memory here are each too small for glibc to map by themselves, with one kept behind each freed one, so
that neither `free` nor the end of the heap gives anything back.
"""

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from interp import heap
from interp.heap import trimmed

ROOT = Path(__file__).resolve().parents[1]
PIECES, SIZE = 4096, 64 * 1024  # 256 MiB in all
PAGE = mmap.PAGESIZE
GLIBC = platform.libc_ver()[0] == "glibc"


def scattered() -> tuple[list[int], list[int]]:
    """Write to every other piece and free it: the freed pieces, and those between them, which are kept."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    pieces = [libc.malloc(SIZE) for _ in range(2 * PIECES)]
    for piece in pieces[::2]:
        ctypes.memset(piece, 1, SIZE)
        libc.free(piece)
    return pieces[::2], pieces[1::2]  # the others were never written to, so they take no memory


def resident(pieces: list[int]) -> float:
    """The share of pieces whose middle is in memory (man 2 mincore), whatever else the process does meanwhile."""
    libc, found = ctypes.CDLL(None), 0
    for piece in pieces:
        said = ctypes.c_ubyte(0)
        middle = ctypes.c_void_p((piece + SIZE // 2) // PAGE * PAGE)
        if libc.mincore(middle, ctypes.c_size_t(1), ctypes.byref(said)) == 0:  # else nothing is mapped there
            found += said.value & 1
    return found / len(pieces)


def in_use(path: Path) -> float:
    """MiB that were allocated and not freed, in all arenas (man 3 malloc_info)."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
    file = libc.fopen(str(path).encode(), b"w")
    libc.malloc_info(0, file)
    libc.fclose(file)
    said = ElementTree.parse(path).getroot()
    free = sum(int(total.attrib["size"]) for total in said.findall("total") if total.attrib["type"] != "mmap")
    system = next(one for one in said.findall("system") if one.attrib["type"] == "current")
    return (int(system.attrib["size"]) - free) / 2**20


def released(pieces: list[int]) -> None:
    libc = ctypes.CDLL(None)
    libc.free.argtypes = [ctypes.c_void_p]
    for piece in pieces:
        libc.free(piece)


@pytest.mark.skipif(not GLIBC, reason="only glibc keeps and trims")
def test_freed_memory_leaves_the_process_when_the_job_is_over():
    freed, kept = scattered()
    assert resident(freed) > 0.9, "glibc gave it back by itself: this test shows nothing"
    with trimmed():
        pass
    assert resident(freed) < 0.05
    released(kept)


@pytest.mark.skipif(not GLIBC, reason="only glibc keeps and trims")
def test_a_decorated_job_that_fails_gives_memory_back_too():
    made: list[tuple[list[int], list[int]]] = []

    @trimmed()
    def job() -> None:
        made.append(scattered())
        raise ValueError("of the job")

    with pytest.raises(ValueError, match="of the job"):
        job()
    [(freed, kept)] = made
    assert resident(freed) < 0.05
    released(kept)


def test_without_the_function_nothing_is_done(monkeypatch: pytest.MonkeyPatch):
    class Bare:
        """A C library without malloc_trim, as on macOS and musl."""

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Bare())
    heap._malloc_trim.cache_clear()
    try:
        with trimmed():
            assert heap._malloc_trim() is None
    finally:
        monkeypatch.undo()
        heap._malloc_trim.cache_clear()


ROUNDS = """
import gc, sys
from pathlib import Path
from interp.corpus import read_corpus
from interp.loading import load_hf
from interp.tokenfile import tokenize
from tests.test_heap import in_use

folder = Path(sys.argv[1])
for i in range(5):
    tokenizer = load_hf("smollm2-135m", upto="resid_post.0").tokenizer  # another one each time
    tokenize(read_corpus("builtin"), tokenizer, folder / str(i), max_tokens=400)
    gc.collect()
    print(in_use(folder / "heap.xml"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="only glibc's arenas can be counted")
def test_tokenising_over_and_over_keeps_nothing(tmp_path: Path):
    """Rust's threads keep the words they have met: 7 MiB a round, if each round made a tokenizer of its own."""
    here = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    said = subprocess.run(
        [sys.executable, "-c", ROUNDS, tmp_path], env=here, cwd=ROOT, check=True, capture_output=True, text=True
    )
    held = [float(line) for line in said.stdout.split()]
    assert len(held) == 5
    assert held[-1] - held[1] < 8, held
