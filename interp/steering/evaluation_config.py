"""Options of an evaluation of steerings, checked as soon as they are written down."""

from dataclasses import dataclass

from interp.errors import InputError
from interp.steering.generation import Writing


@dataclass(frozen=True)
class EvaluationConfig:
    """Options of an evaluation."""

    betas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    """Strengths of every method without strengths of its own."""
    n_prompts: int = 24
    """Prompts of each kind, from the held-out split."""
    max_new_tokens: int = 48
    """Longest generated text."""
    temperature: float = 0.0
    """0: always the likeliest token."""
    batch_size: int = 64
    """Texts generated together; changes nothing but the speed."""
    neutral_documents: int = 16
    """Documents behind KL and the change of cross-entropy."""
    neutral_length: int = 64
    """Tokens of each."""
    questions: int = 60
    """Multiple-choice questions, where any are given; 0 for none."""
    prompt_only: bool = True
    """Also measure what an instruction in the prompt does."""
    instruction: str | None = None
    """That instruction; by default one made of the concepts' descriptions."""
    samples: int = 3
    """Prompts of each kind whose texts are kept for reading."""
    level: float = 0.95
    """Of the intervals."""
    seed: int = 0
    """Chooses the prompts and, with a temperature, the tokens."""

    def __post_init__(self) -> None:
        if not self.betas or len(set(self.betas)) < len(self.betas) or 0 in self.betas:
            raise InputError(f"betas {self.betas}: expected different strengths, none of them 0 (that is `unsteered`)")
        if min(self.n_prompts, self.neutral_documents, self.neutral_length) < 1 or self.questions < 0:
            raise InputError("n_prompts, neutral_documents and neutral_length are 1 or more, questions 0 or more")

    @property
    def writing(self) -> Writing:
        """How texts are generated."""
        return Writing(self.max_new_tokens, self.temperature, batch_size=self.batch_size, seed=self.seed)
