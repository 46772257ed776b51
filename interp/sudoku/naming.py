"""Traces as text, so that whatever wants a tokenizer or names tokens (token files, the lens) takes Sudoku as it is.

text_of(words, [..]) = "R1C2=3 R4C4=1 END_CLUES R1C1=2 .. SUCCESS"        one word a token, rows and columns from 1
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from interp.sudoku.tokens import Vocabulary


def text_of(words: Vocabulary, tokens: Iterable[int | np.integer]) -> str:
    """The tokens' names, a space between."""
    return " ".join(words.describe(int(token)) for token in tokens)


@lru_cache
def tokenizer_of(words: Vocabulary) -> Any:
    """A transformers tokenizer that reads such text; PAD and SUCCESS are its special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({words.describe(token): token for token in range(words.size)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": words.describe(words.pad), "eos_token": words.describe(words.success)}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)
