"""Less waiting for Triton's interpreter, which spends half of its time on what nobody looks at.

* Device functions called from a kernel mostly find `triton.language` patched by its launch; the interpreter looks
  through all of it again.
* Sums and products of integers are computed again in 64 bits and compared with the limits of 32, for an assertion that
  is then left out, as it is of every kernel that is not compiled for debugging. That a place wraps around is found by
  where it leads, by the guard.
"""

import dataclasses

import pytest


def quick(patch: pytest.MonkeyPatch) -> None:
    """Leave both out."""
    from triton import language as tl
    from triton.runtime import interpreter
    from triton.runtime.errors import InterpreterError

    def call(self, *args, **kwargs):
        seen = [value for value in self.fn.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.load) for language in seen):
            interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise InterpreterError(repr(error)) from error

    patch.setattr(interpreter.InterpretedFunction, "__call__", call)
    builder = interpreter.interpreter_builder
    assert not builder.options.debug, "for debugging the assertions are made"
    patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
