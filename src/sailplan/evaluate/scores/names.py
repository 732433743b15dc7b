"""The names of our scores."""

from __future__ import annotations

from collections.abc import Mapping

TITLES: Mapping[str, str] = {
    "loss": "loss of a token",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "json_valid": "valid JSON",
    "json_equal": "equal JSON",
    "answer_words": "words of an answer",
    "ended": "ended by itself",
}
"""For people, by name, in the order in which scores are told; a user's own score has its name."""

MAIN = ("loss", "exact_match", "token_f1", "rouge_l", "chrf", "bleu", "json_valid", "json_equal")
"""By which of our scores rows may be sorted; a user's own may be too."""

SHARES = frozenset(
    ("token_accuracy", "exact_match", "token_f1", "rouge_l", "json_valid", "json_equal", "ended")
)
"""Those that lie between 0 and 1, to be written in percent."""
