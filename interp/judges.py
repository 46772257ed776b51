"""Judges: what a text says, decided by something that did not write it and was not fitted on it.

Question, Scores, Judge     what is asked, what comes back, what a judge must do      interp.judging.question
LexiconJudge                counts words, with negation                               interp.judging.lexicon
"""

from interp.judging.lexicon import LexiconJudge
from interp.judging.question import Judge, Question, Scores

__all__ = ["Judge", "LexiconJudge", "Question", "Scores"]
