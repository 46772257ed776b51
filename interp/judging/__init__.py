"""The parts of `interp.judges`, one file a kind of judge."""
