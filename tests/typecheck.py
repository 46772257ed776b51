"""What checks every public signature in the tests: beartype, with an `int` passing where a `float` is asked for."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
