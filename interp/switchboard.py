"""One torch hook per place of a module, and an ordered list of handlers behind it.

Torch calls hooks in the order they were registered, which is not the order this package needs: edits of every nesting
level come before the captures that must see them, and bookkeeping comes after both. So each (module, side) that anyone
is interested in carries a single torch hook, and `Switchboard` sorts its handlers by `Turn`, then by age. The torch
hook goes when its last handler goes, so nothing stays on a module that nobody watches.

A handler gets `(value, call)`: the tensor at this place, and what else is known of this call of the module. It returns
a tensor to put in its place, or `None`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from torch import Tensor, nn

Side = Literal["in", "out"]


@dataclass
class Call:
    """One call of a hooked module: its first argument, and the normalised value that a handler put in, if any."""

    source: Tensor
    normalized: Tensor | None = None


Handler = Callable[[Tensor, Call], Tensor | None]


class Turn(IntEnum):
    """Who goes first at one place."""

    REPLACE = 0
    """Puts in what an edit elsewhere implies."""
    EDIT = 1
    CAPTURE = 2
    NOTE = 3
    """Sees the value as everyone else left it."""


class _Place:
    """One side of one module, hooked."""

    def __init__(self, module: nn.Module, side: Side) -> None:
        self.handlers: list[tuple[Turn, int, Handler]] = []
        if side == "in":
            self.hook = module.register_forward_pre_hook(self._on_input, with_kwargs=True)
        else:
            self.hook = module.register_forward_hook(self._on_output, with_kwargs=True)

    def _pass(self, value: Tensor, source: Tensor) -> Tensor:
        call = Call(source)
        for _, _, handler in tuple(self.handlers):
            new = handler(value, call)
            value = value if new is None else new
        return value

    def _on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = _first(args, kwargs)
        new = self._pass(value, value)
        if new is value:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    def _on_output(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        new = self._pass(value, _first(args, kwargs))
        if new is value:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


class Switchboard:
    """The handlers of one model."""

    def __init__(self) -> None:
        self._places: dict[tuple[nn.Module, Side], _Place] = {}
        self._age = 0

    def attach(self, module: nn.Module, side: Side, turn: Turn, handler: Handler) -> Callable[[], None]:
        """Put `handler` behind one side of `module`; returns what takes it off again."""
        place = self._places.get((module, side))
        if place is None:
            place = self._places[module, side] = _Place(module, side)
        self._age += 1
        entry = (turn, self._age, handler)
        place.handlers.append(entry)
        place.handlers.sort(key=lambda e: e[:2])

        def detach() -> None:
            place.handlers.remove(entry)
            if not place.handlers and self._places.get((module, side)) is place:
                place.hook.remove()
                del self._places[module, side]

        return detach

    def __len__(self) -> int:
        return len(self._places)
