"""`midlens discover`: from a model and text to a trained, evaluated, readable SAE and its report."""

from dataclasses import dataclass

from midlens.console import say
from saes.discover import DiscoverConfig, discover


@dataclass(frozen=True)
class Discover(DiscoverConfig):
    """From a model and text to a trained, evaluated, readable SAE and one offline HTML report."""

    def run(self) -> int:
        """Run every stage; the report's path is the last line."""
        path = discover(self, say=say)
        say(str(path.resolve()))
        return 0
