"""Judges: what a text says, decided by something that did not write it and was not fitted on it.

judge.score(texts, Question.choice("Which mood?", ["negative", "positive"])) -> Scores

Question, Scores, Judge     what is asked, what comes back, what a judge must do      interp.judging.question
LogProbJudge                a model in memory, by the probability of each option      interp.judging.logprob
EndpointJudge               a model behind an OpenAI-compatible endpoint              interp.judging.endpoint
EmbeddingJudge              nearest meaning, by sentence embeddings                   interp.judging.embedding
ProbeJudge                  a read-out fitted on other labelled texts                 interp.judging.probe
LexiconJudge                counts words, with negation                               interp.judging.lexicon
Panel                       several of these: majority, agreement, chance             interp.judging.panel
"""

from interp.judging.embedding import EmbeddingJudge
from interp.judging.endpoint import Endpoint, EndpointJudge
from interp.judging.lexicon import LexiconJudge
from interp.judging.logprob import LogProbJudge
from interp.judging.panel import Panel, Verdict
from interp.judging.probe import ProbeJudge
from interp.judging.question import Judge, Question, Scores

__all__ = [
    "EmbeddingJudge",
    "Endpoint",
    "EndpointJudge",
    "Judge",
    "LexiconJudge",
    "LogProbJudge",
    "Panel",
    "ProbeJudge",
    "Question",
    "Scores",
    "Verdict",
]
