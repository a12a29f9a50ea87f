"""What a model reads before it generates, and what becomes of unknown words."""

import pytest
from model_examples import WORDS

from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.inference.prompts import prompt_ids


def test_prompt_begins_a_line_where_the_vocabulary_has_line_ends():
    assert prompt_ids(WORDS, "the cat")[0].tolist() == [1, 0, 2]
    assert prompt_ids(WORDS, "")[0].tolist() == [1]
    assert prompt_ids(Vocabulary(("\n", "a"), "char"), "aa")[0].tolist() == [0, 1, 1]
    assert prompt_ids(Vocabulary(("a", "b"), "char"), "ba")[0].tolist() == [1, 0]


def test_unknown_words_of_a_prompt_are_read_as_unk_and_told():
    ids, unknown = prompt_ids(WORDS, "dog the dog bit")
    assert ids.tolist() == [1, 3, 0, 3, 3]
    assert unknown == {"dog": 2, "bit": 1}


@pytest.mark.parametrize(
    ("words", "unit", "prompt", "reason"),
    [
        (("a", "<eos>"), "word", "a zebra", "^prompt=a zebra: not among the 2 words .*: zebra;"),
        (("a", "b"), "char", "añ", "not among the 2 characters of the model: ñ; leave them out"),
        (
            ("a", "b"),
            "char",
            "ab\n" * 999,
            r"^prompt=(ab\\n){15}…: not among the 2 characters of the model: \\n \(999 times\); l",
        ),
        (("a", "b"), "char", "", "no line ends to begin at; give a character"),
    ],
)
def test_prompt_that_cannot_be_read_is_refused(words, unit, prompt, reason):
    with pytest.raises(ValueError, match=reason):
        prompt_ids(Vocabulary(words, unit), prompt)
