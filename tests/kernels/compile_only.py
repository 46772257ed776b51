"""Compiles kernels for GPUs that are not there, down to PTX and through the assembler that Triton brings along.

    ptx = compile_for("midlens_kernels.topk_decode._triton", "_decode", {"W": "*bf16", "D": "i32"}, {"BLOCK": 256}, 90)

Interpreted kernels cannot be compiled, and whether they are interpreted is decided when they are defined. So another
process compiles, one for all calls, without TRITON_INTERPRET. It imports the package the way the tests do, under
jaxtyping's hook, for there a kernel without `@no_type_check` does not compile. A kernel that needs more shared
memory than the GPU has compiles and then cannot be launched; here it is refused.

What a launch adds and this does not: an integer argument that is 1 becomes a constant (put it under `constexprs` to see
that this compiles too), and one divisible by 16 is known to be.
"""

import atexit
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have, by the CUDA C++ Programming Guide


class CannotCompile(AssertionError):
    """The compiler's own message."""


def compile_for(
    module: str,
    kernel: str,
    signature: dict[str, str],
    constexprs: dict[str, object],
    capability: int,
    *,
    options: dict[str, int] | None = None,
) -> str:
    """The PTX of `kernel` for sm_`capability`; `signature` gives the type of every argument that is no constexpr."""
    job = {
        "module": module,
        "kernel": kernel,
        "signature": signature,
        "constexprs": constexprs,
        "capability": capability,
        "options": options or {},
    }
    answer = _worker().ask(job)
    if "error" in answer:
        raise CannotCompile(f"{module}.{kernel} for sm_{capability}: {answer['error']}")
    return answer["ptx"]


def compiler_version() -> str:
    """The Triton that compiles."""
    return _worker().ask({"version": True})["version"]


class _Worker:
    """The compiling process: a line of JSON in, a line of JSON out."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="compile-only-")
        self.log = open(Path(self.folder.name, "log"), "w+")
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = str(Path(self.folder.name, "cache"))
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            cwd=ROOT,
            text=True,
        )
        atexit.register(self.close)

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job, default=_encode) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:  # the compiler aborted, or the process could not start
            code = self.process.wait()
            self.log.seek(0)
            _worker.cache_clear()
            return {"error": f"the compiling process ended with {code}: {self.log.read()[-2000:]}"}
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()
        self.folder.cleanup()


@functools.cache
def _worker() -> _Worker:
    return _Worker()


def _encode(value: Any) -> dict[str, str]:
    """A constexpr that is one of Triton's dtypes."""
    return {"triton dtype": value.name}


def _decode(value: dict[str, Any]) -> Any:
    import triton.language as tl

    return tl.dtype(value["triton dtype"]) if "triton dtype" in value else value


def _compiled(job: dict[str, Any]) -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constexprs, capability = job["kernel"], job["constexprs"], job["capability"]
    function = getattr(importlib.import_module(job["module"]), kernel)
    known = job["signature"] | dict.fromkeys(constexprs, "constexpr")
    if missing := [name for name in function.arg_names if name not in known]:
        raise TypeError(f"no type given for {', '.join(missing)}")
    if unknown := known.keys() - set(function.arg_names):
        raise TypeError(f"no argument is called {', '.join(sorted(unknown))}; it takes {', '.join(function.arg_names)}")
    source = ASTSource(fn=function, signature={name: known[name] for name in function.arg_names}, constexprs=constexprs)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=job["options"])
    if (needed := binary.metadata.shared) > (there := SHARED_MEMORY[capability]):
        raise MemoryError(f"{needed} bytes of shared memory, sm_{capability} has {there}")
    assert binary.asm["cubin"]
    return binary.asm["ptx"]


def _answer(job: dict[str, Any]) -> dict[str, str]:
    import triton

    if "version" in job:
        return {"version": triton.__version__}
    try:
        return {"ptx": _compiled(job)}
    except Exception as error:  # whatever the compiler says is the answer
        return {"error": f"{type(error).__name__}: {error}"}


def _serve() -> None:
    from jaxtyping import install_import_hook

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the compiler writes is no answer
    with install_import_hook(["midlens_kernels"], "typecheck.checked"):
        for line in sys.stdin:
            answers.write(json.dumps(_answer(json.loads(line, object_hook=_decode))) + "\n")
            answers.flush()


if __name__ == "__main__":
    _serve()
