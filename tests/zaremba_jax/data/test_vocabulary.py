from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from zaremba_jax.data.units import BYTES, EOS, UNITS, UNK
from zaremba_jax.data.vocabulary import Vocabulary, listed

WORDS = st.lists(st.sampled_from(["a", "b", "ñ", "the", UNK, EOS]), min_size=1, max_size=50)
TEXT = st.text(st.sampled_from("ab ñ\n\t€😀"), min_size=1, max_size=50)
NAMES = st.sampled_from(["word", "char", "byte"])


@given(WORDS)
def test_decode_inverts_encode(words):
    vocabulary = Vocabulary.from_tokens(words)
    ids = vocabulary.encode(words)
    assert vocabulary.decode(ids) == words
    assert ids.dtype == np.int32
    assert set(ids) == set(range(len(vocabulary)))


@given(TEXT, NAMES)
def test_join_gives_a_text_of_the_same_tokens(text, unit):
    vocabulary = Vocabulary.from_tokens(UNITS[unit].tokenize(text), unit)
    tokens = vocabulary.tokenize(text)
    joined = vocabulary.detokenize(vocabulary.encode(tokens))
    assert vocabulary.tokenize(joined) == tokens
    assert unit == "word" or joined == text


@given(st.lists(TEXT), NAMES)
def test_tokens_of_lines_are_those_of_the_whole_text(lines, unit):
    text = "".join(f"{line}\n" for line in lines)
    assert UNITS[unit].tokenize(text) == [
        token for line in lines for token in UNITS[unit].tokenize(f"{line}\n")
    ]


def test_tokens_are_words_with_line_ends_or_characters_or_bytes():
    assert UNITS["word"].tokenize(" the cat\n\nñ") == ["the", "cat", EOS, EOS, "ñ"]
    assert UNITS["char"].tokenize("a ñ\n") == ["a", " ", "ñ", "\n"]
    assert UNITS["byte"].tokenize("a ñ\n") == ["a", " ", "\xc3", "\xb1", "\n"]


def test_joined_words_have_a_space_between_and_lines_of_their_own():
    vocabulary = Vocabulary((EOS, "the", "cat", UNK))
    assert vocabulary.detokenize([1, 2, 0, 0, 3, 1]) == "the cat\n\n<unk> the"
    assert vocabulary.detokenize([]) == ""


def test_vocabulary_is_ordered_by_frequency_then_alphabet_whatever_the_order_of_the_text():
    assert Vocabulary.from_tokens(["c", "b", "a", "c", "b", "c"]).words == ("c", "b", "a")
    assert Vocabulary.from_tokens(["b", "a"]) == Vocabulary.from_tokens(["a", "b"])


@example([EOS], 1, 1)
@given(WORDS, st.integers(0, 7), st.integers(1, 5))
def test_limits_give_the_vocabulary_of_a_text_with_unk_for_what_is_rare(words, size, min_count):
    try:
        limited = Vocabulary.from_tokens(words, vocab_size=size, min_count=min_count)
    except ValueError:
        counts = Counter(word for word in words if word not in (EOS, UNK))
        assert max(counts.values(), default=0) < min_count or 0 < size < 2 + (EOS in words)
        return
    assert size == 0 or len(limited) <= size
    replaced = [word if word in limited.words else UNK for word in words]
    always = (UNK,) if (size or min_count > 1) and UNK not in replaced else ()
    assert limited.words == Vocabulary.from_tokens(replaced).words + always
    assert limited.decode(limited.encode(words)) == replaced


@given(WORDS, st.integers(3, 7), st.integers(1, 5))
def test_nothing_is_left_out_that_has_room_and_is_frequent_enough(words, size, min_count):
    counts = Counter(words)
    frequent = [w for w in counts if counts[w] >= min_count and w not in (EOS, UNK)]
    assume(frequent)
    limited = Vocabulary.from_tokens(words, vocab_size=size, min_count=min_count)
    for word in set(frequent) - set(limited.words):
        assert len(limited) == size
        assert all(counts[word] <= counts[kept] for kept in limited.words if kept in frequent)
    assert EOS not in counts or EOS in limited.words


@pytest.mark.parametrize("limits", [{"vocab_size": 20_000}, {"min_count": 2}])
def test_whoever_gives_a_limit_can_read_words_of_other_texts(limits):
    vocabulary = Vocabulary.from_tokens(["a", "a", "b", "b", EOS, EOS], **limits)
    assert vocabulary.decode(vocabulary.encode(["a", "zebra"])) == ["a", UNK]


def test_words_that_mean_the_end_or_the_unknown_elsewhere_become_the_marks_of_here():
    vocabulary = Vocabulary(("the", "</s>", "[unk]"))
    marked = vocabulary.with_marks("</s>", "[unk]")
    assert marked.words == ("the", EOS, UNK)
    assert marked.encode(marked.tokenize("the cat\n")).tolist() == [0, 2, 1]
    assert marked.with_marks() == marked
    with pytest.raises(ValueError, match=r"^cat: is not in the vocabulary"):
        vocabulary.with_marks("cat")
    with pytest.raises(ValueError, match=r"^the: the vocabulary has <unk> itself"):
        marked.with_marks(unknown="the")
    with pytest.raises(ValueError, match=r"^the: cannot mean both <eos> and <unk>; give one"):
        vocabulary.with_marks("the", "the")


def test_bytes_have_a_vocabulary_of_their_own_whatever_the_text():
    vocabulary = Vocabulary.from_tokens(UNITS["byte"].tokenize("aab"), "byte")
    assert len(vocabulary) == 256
    assert vocabulary.encode(vocabulary.tokenize("añ")).tolist() == list("añ".encode())
    assert vocabulary.detokenize([0xC3]) == "\ufffd"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"vocab_size": 1}, "^vocab_size=1: has no room for <eos> and <unk>; give at least 3"),
        ({"vocab_size": 2}, "^vocab_size=2, min_count=1: leaves no word .*2 times; .* at least 3"),
        ({"min_count": 9}, "^vocab_size=0, min_count=9: leaves no word .*a lower min_count"),
        ({"unit": "byte", "vocab_size": 9}, "^vocab_size=9, .* has all 256; leave both out"),
        ({"unit": "byte", "min_count": 2}, "^vocab_size=0, min_count=2: .* has all 256; leave"),
        ({"unit": "words"}, "^unit='words': must be one of word, char, byte"),
    ],
)
def test_limits_that_leave_nothing_and_units_that_are_none_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_tokens(["a", "a", "b", EOS], **limits)


def test_fingerprint_tells_vocabularies_and_their_units_apart():
    words = [("a", "b"), ("b", "a"), ("ab",)]
    units = ("word", "char", "byte")
    assert len({Vocabulary(w, unit).fingerprint for w in words for unit in units}) == 9
    assert Vocabulary(("a", "b")).fingerprint == Vocabulary(("a", "b")).fingerprint


def test_fingerprint_of_words_is_the_one_that_checkpoints_have():
    expected = "7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"
    assert Vocabulary(("a", "b")).fingerprint == expected


@pytest.mark.parametrize("number", [-1, 3])
def test_ids_of_no_token_are_not_decoded(number):
    with pytest.raises(ValueError, match=f"ids from {number} to {number} for a vocabulary of 3"):
        Vocabulary(("a", "b", "c")).decode([number])


def test_unknown_words_become_unk_where_there_is_one_and_are_refused_where_there_is_none():
    assert Vocabulary((UNK, "a")).encode(["a", "zebra"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"^v\.txt: the word 'zebra' is not in .* replace rare"):
        Vocabulary(("a",)).encode(["a", "zebra"], source="v.txt")
    with pytest.raises(ValueError, match=r"^v\.txt: the character 'z' is not in .*min_count=2"):
        Vocabulary(("a",), "char").encode("az", source="v.txt")


def test_unknown_tokens_are_counted_and_listed_on_one_line():
    unknown = Vocabulary((UNK, "the")).unknown(["dog", "the", "a\n", "dog", UNK])
    assert unknown == {"dog": 2, "a\n": 1}
    assert listed(unknown) == r"dog (2 times), a\n"
    assert listed(unknown, most=1) == "dog (2 times) and 1 more"
    assert listed({}) == ""


@pytest.mark.parametrize(
    ("words", "unit", "line_end", "read"),
    [
        ((EOS, "a"), "word", EOS, True),
        (("a", UNK), "word", None, False),  # `<eos>` is never left out, so lines had no ends
        (("\n", "a"), "char", "\n", True),
        (("a", UNK), "char", None, True),
        (("a", EOS), "char", None, False),
        (BYTES, "byte", "\n", True),
    ],
)
def test_line_ends_are_tokens_or_may_be_rare_ones(words, unit, line_end, read):
    vocabulary = Vocabulary(words, unit)
    assert (vocabulary.line_end, vocabulary.reads_line_ends) == (line_end, read)


@pytest.mark.parametrize("unit", ["word", "char", "byte"])
@pytest.mark.parametrize("text", ["a ñ", b"a \xc3\xb1"])
def test_whole_text_is_refused_where_it_is_no_list_of_tokens(unit, text):
    vocabulary = Vocabulary((UNK, *BYTES), unit)
    if unit == "char" and isinstance(text, str):
        assert vocabulary.decode(vocabulary.encode(text)) == list(text)
        return
    remedy = "split it" if isinstance(text, str) else "decode it and split it"
    reason = f"^v: is a text, not a list of {UNITS[unit].noun}s; {remedy} with `tokenize`"
    with pytest.raises(ValueError, match=reason):
        vocabulary.encode(text, source="v")
