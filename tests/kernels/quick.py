"""Less waiting for Triton's interpreter."""

import pytest


def calls_without_patching(patch: pytest.MonkeyPatch) -> None:
    """Device functions called from a kernel mostly find `triton.language` patched by its launch; the interpreter looks
    through all of it again, which takes half the time of a small kernel."""
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
