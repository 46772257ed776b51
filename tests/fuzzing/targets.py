"""Every fuzz target of the project: `TARGETS`, by name. A module that registers targets is imported here."""

import fuzzing.results
import fuzzing.saes
import fuzzing.stores
import fuzzing.texts
import fuzzing.trained
from fuzzing.registry import TARGETS, Runner, Target, extremes, signature

__all__ = ["TARGETS", "Runner", "Target", "extremes", "fuzzing", "signature"]
