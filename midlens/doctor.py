"""`midlens doctor`: what is installed, what this machine can do, and what is wrong."""

from dataclasses import dataclass
from typing import ClassVar

from midlens.console import Command, finish, say


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """What is installed, what this machine can do, what the caches hold, and what is wrong, with a remedy.

    Nothing is loaded, and the network is not used; ends with status 1 if something is broken."""

    example: ClassVar[str] = "midlens doctor --json"
    figures: ClassVar[str] = "facts by section; problems: a list of {what, remedy}"

    def run(self) -> int:
        """Examine and print; 1 if something is broken."""
        from interp.doctor import examine
        from saes.presets import SAE_PRESETS

        found = examine({name: preset.source for name, preset in SAE_PRESETS.items()})
        say(found.text())
        problems = [problem._asdict() for problem in found.problems]
        return finish(figures={**found.facts, "problems": problems}, status=1 if problems else 0)
