"""The source against enumeration of all its paths, and the toy language against its own rules."""

import dataclasses
import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax.data.corpus import Corpus, unigram_perplexity
from zaremba_jax.data.hidden_markov import HiddenMarkovSource
from zaremba_jax.data.toy_corpus import toy_corpus, toy_source
from zaremba_jax.data.units import EOS

NOUN = re.compile(r"[a-z]{3}(?P<gender>[aeou])(?P<number>s?)")
VERB = re.compile(r"[a-z]{3}(?P<gender>[aeou])(?P<number>n?)t")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return toy_corpus()


@pytest.fixture(scope="module")
def source_ids(corpus) -> np.ndarray:
    """The test split in the ids of its source."""
    ids = {word: i for i, word in enumerate(toy_source().words)}
    return np.array([ids[word] for word in corpus.vocabulary.decode(corpus.test)])


@pytest.fixture(scope="module")
def sentences(corpus) -> list[list[str]]:
    """The whole sentences of the training split's first 30,000 tokens, without `<eos>`."""
    text = " ".join(corpus.vocabulary.decode(corpus.train[:30_000]))
    return [sentence.split() for sentence in text.split(EOS)[:-1]]


def random_source(seed: int, states: int, words: int) -> HiddenMarkovSource:
    rng = np.random.default_rng(seed)
    return HiddenMarkovSource(
        tuple("abcdef"[:words]),
        start=rng.dirichlet(np.ones(states)),
        transition=rng.dirichlet(np.ones(states), states),
        emission=rng.dirichlet(np.ones(words), states),
    )


def enumerated_probability(source: HiddenMarkovSource, ids: tuple[int, ...]) -> float:
    total = 0.0
    for path in itertools.product(range(len(source.start)), repeat=len(ids)):
        probability = source.start[path[0]]
        for state, word in zip(path, ids, strict=True):
            probability *= source.emission[state, word]
        for state, successor in itertools.pairwise(path):
            probability *= source.transition[state, successor]
        total += probability
    return total


def forward_probability(source: HiddenMarkovSource, ids: tuple[int, ...]) -> float:
    first = source.start @ source.emission[:, ids[0]]
    return first * np.exp(-source.token_nll(np.array(ids)).sum())


small_sources = st.builds(
    random_source, st.integers(0, 2**32 - 1), states=st.integers(1, 3), words=st.integers(2, 3)
)


@given(small_sources, st.integers(2, 4))
def test_forward_algorithm_agrees_with_enumeration_of_every_state_path(source, length):
    texts = list(itertools.product(range(len(source.words)), repeat=length))
    forward = [forward_probability(source, ids) for ids in texts]
    enumerated = [enumerated_probability(source, ids) for ids in texts]
    np.testing.assert_allclose(forward, enumerated, rtol=1e-10)


def test_a_text_beyond_the_range_of_unscaled_probabilities_has_finite_nll():
    source = random_source(0, states=3, words=6)
    ids = source.sample(np.random.default_rng(0), 5000)
    nll = source.token_nll(ids)
    assert nll.shape == (4999,)
    assert nll.dtype == np.float64
    assert nll.sum() > 745  # -log of the smallest float64
    assert np.isfinite(nll).all()


def test_samples_occur_as_often_as_their_probability_says():
    source = random_source(1, states=3, words=3)
    rng, count = np.random.default_rng(0), 5000
    seen = Counter(tuple(source.sample(rng, 3).tolist()) for _ in range(count))
    for ids in itertools.product(range(3), repeat=3):
        p = enumerated_probability(source, ids)
        assert abs(seen[ids] / count - p) < 5 * np.sqrt(p * (1 - p) / count)


def test_a_longer_sample_continues_the_shorter_one():
    short, long = (toy_source().sample(np.random.default_rng(3), length) for length in (50, 500))
    np.testing.assert_array_equal(long[:50], short)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("transition", np.ones((2, 3)) / 3, r"transition: shape \(2, 3\).* shape \(2, 2\)"),
        ("emission", np.ones((2, 2)) / 2, r"emission: shape \(2, 2\).* shape \(2, 3\)"),
        ("start", np.array([0.5, 0.4]), r"start: .*row sums from 0\.9 .*sum to 1"),
        ("transition", np.array([[1.5, -0.5], [0, 1]]), r"transition: .*entries from -0\.5"),
        ("emission", np.array([[1, 0, 0], [1, 1, 0]]), r"emission: .*from 1 to 2; give rows"),
    ],
)
def test_a_source_refuses_tables_that_are_no_distributions(name, table, message):
    source = random_source(0, states=2, words=3)
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(source, **{name: table})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "0 ids .*at least 2"),
        ([1], "1 ids .*at least 2"),
        ([0, -1], r"from -1 to 0: .*source's 3 words"),
        ([0, 3], r"from 0 to 3: .*source's 3 words"),
        ([0, 1, 2, 0], "id 2 at position 2: 'c' cannot follow .*; give a text of this source"),
    ],
)
def test_nll_refuses_a_text_that_the_source_cannot_make(ids, message):
    source = HiddenMarkovSource(
        ("a", "b", "c"), np.ones(1), np.ones((1, 1)), np.array([[0.5, 0.5, 0.0]])
    )
    with pytest.raises(ValueError, match=message) as error:
        source.token_nll(np.array(ids, np.int64))
    assert "\n" not in str(error.value)


def test_the_seed_decides_the_text():
    sizes = {"train_tokens": 100_000, "valid_tokens": 300, "test_tokens": 300}
    first, repeat, other = (toy_corpus(seed, **sizes) for seed in (0, 0, 1))
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(getattr(first, split), getattr(repeat, split))
        assert not np.array_equal(getattr(first, split), getattr(other, split))
    assert first.vocabulary == repeat.vocabulary
    assert first.floor_perplexity == repeat.floor_perplexity != other.floor_perplexity
    assert set(first.vocabulary.words) == set(other.vocabulary.words)


def test_the_size_of_a_split_leaves_the_others_as_they_are(corpus):
    resized = toy_corpus(train_tokens=100_000, valid_tokens=77)
    assert (len(resized.train), len(resized.valid)) == (100_000, 77)
    assert resized.vocabulary.decode(resized.test) == corpus.vocabulary.decode(corpus.test)
    assert resized.floor_perplexity == corpus.floor_perplexity


def test_the_three_splits_are_different_texts(corpus):
    train, valid, test = (ids[:100].tolist() for ids in (corpus.train, corpus.valid, corpus.test))
    assert train != valid != test != train


def test_the_corpus_has_the_words_of_the_language_and_no_other(corpus):
    assert corpus.name == "toy"
    assert set(corpus.vocabulary.words) == set(toy_source().words)
    assert 600 <= len(corpus.vocabulary) <= 1000
    assert EOS in corpus.vocabulary.words


def test_every_word_is_almost_sure_to_occur_in_the_default_training_split(corpus):
    source = toy_source()
    word_rates = stationary(source) @ source.emission
    assert np.exp(-word_rates * len(corpus.train)).sum() < 1e-4


def test_word_frequencies_fall_as_zipf_says(corpus):
    counts = np.sort(np.bincount(corpus.train))[::-1]
    ranks = np.arange(1, len(counts) + 1)
    slope, _ = np.polyfit(np.log(ranks), np.log(counts), 1)
    assert -1.2 < slope < -0.8


@dataclasses.dataclass(frozen=True)
class Parse:
    """What agrees in a sentence, found only by the endings of its words."""

    subject: str
    verb: str
    clauses: list[tuple[str, str]]
    object: str | None
    nouns_before_verb: int


def parse(sentence: list[str]) -> Parse:
    nouns, clauses = [], []
    words = iter(sentence)
    for word in words:
        if word == "ke":
            _, noun, verb = (next(words) for _ in range(3))
            clauses.append((noun, verb))
        elif NOUN.fullmatch(word):
            nouns.append(word)
        elif VERB.fullmatch(word):
            remaining = [later for later in words if NOUN.fullmatch(later)]
            assert len(remaining) <= 1
            return Parse(
                nouns[0], word, clauses, next(iter(remaining), None), len(nouns) + len(clauses)
            )
    raise AssertionError(f"no main verb: {' '.join(sentence)}")


def ending(pattern: re.Pattern[str], word: str) -> tuple[str, bool]:
    """The gender that a noun or verb shows, and whether it shows a plural."""
    match = pattern.fullmatch(word)
    assert match
    return match["gender"], match["number"] != ""


def agree(noun: str, verb: str) -> bool:
    (noun_gender, noun_plural), (verb_gender, verb_plural) = ending(NOUN, noun), ending(VERB, verb)
    numberless = not noun_plural and noun + "s" not in toy_source().words
    return noun_gender == verb_gender and (numberless or noun_plural == verb_plural)


def test_verbs_agree_with_their_subjects_across_phrases_and_clauses(sentences):
    parses = [parse(sentence) for sentence in sentences]
    for parsed in parses:
        assert agree(parsed.subject, parsed.verb)
        assert all(agree(noun, verb) for noun, verb in parsed.clauses)
        if parsed.object is not None:
            assert ending(NOUN, parsed.object)[0] == ending(VERB, parsed.verb)[0]
    assert np.mean([parsed.nouns_before_verb > 1 for parsed in parses]) > 0.4
    assert max(parsed.nouns_before_verb for parsed in parses) > 5
    assert sum(len(parsed.clauses) for parsed in parses) > 500
    assert sum(parsed.object is not None for parsed in parses) > 1000


def test_some_nouns_do_not_tell_their_number(sentences):
    numbers: dict[str, set[bool]] = {}
    for parsed in map(parse, sentences):
        numbers.setdefault(parsed.subject, set()).add(ending(VERB, parsed.verb)[1])
    numberless = {noun for noun, seen in numbers.items() if len(seen) == 2}
    assert numberless
    assert all(noun + "s" not in toy_source().words for noun in numberless)


def test_a_sentence_mostly_keeps_the_gender_of_the_last(sentences):
    genders = [ending(VERB, parse(sentence).verb)[0] for sentence in sentences]
    kept = np.mean([before == after for before, after in itertools.pairwise(genders)])
    assert kept == pytest.approx(0.8 + 0.2 / 4, abs=0.03)


def test_the_floor_is_the_perplexity_of_the_source_on_the_test_split(corpus, source_ids):
    assert corpus.floor_perplexity == np.exp(toy_source().token_nll(source_ids).mean())
    assert 25 < corpus.floor_perplexity < 40
    assert corpus.floor_perplexity < (unigram_perplexity(corpus) or 0) / 4


def test_n_grams_stay_far_above_the_floor(corpus):
    perplexities = [ngram_perplexity(corpus, order) for order in (2, 3, 4)]
    assert min(perplexities) < 0.6 * (unigram_perplexity(corpus) or 0)
    assert min(perplexities) > 1.25 * corpus.floor_perplexity


def ngram_perplexity(corpus: Corpus, order: int, discount: float = 0.75) -> float:
    """Test perplexity of an n-gram model with interpolated absolute discounting."""
    train, test = corpus.train.tolist(), corpus.test.tolist()
    probabilities = (np.bincount(corpus.train) / len(train))[test[1:]]
    for n in range(2, order + 1):
        grams = Counter(zip(*(train[start:] for start in range(n)), strict=False))
        totals, types = Counter(), Counter()
        for gram, count in grams.items():
            totals[gram[:-1]] += count
            types[gram[:-1]] += 1
        for t in range(n - 1, len(test)):
            gram = tuple(test[t - n + 1 : t + 1])
            if total := totals[gram[:-1]]:
                seen = max(grams[gram] - discount, 0)
                backoff = discount * types[gram[:-1]] * probabilities[t - 1]
                probabilities[t - 1] = (seen + backoff) / total
    return float(np.exp(-np.log(probabilities).mean()))


def stationary(source: HiddenMarkovSource) -> np.ndarray:
    states = source.start
    for _ in range(2000):
        states = states @ source.transition
    np.testing.assert_allclose(states @ source.transition, states, atol=1e-12)
    return states


def test_the_far_past_tells_what_the_last_words_do_not(source_ids):
    source = toy_source()
    forgetful = dataclasses.replace(source, start=stationary(source))
    indices = np.arange(20, 1500)
    full = source.token_nll(source_ids[:1500])[indices - 1]

    def nll_given_last(count: int) -> np.ndarray:
        return np.array([forgetful.token_nll(source_ids[t - count : t + 1])[-1] for t in indices])

    after_3, after_10 = nll_given_last(3), nll_given_last(10)
    verbs = np.array([bool(VERB.fullmatch(source.words[word])) for word in source_ids[indices]])
    assert verbs.sum() > 100
    assert after_3[verbs].mean() - full[verbs].mean() > 0.6
    assert np.exp(after_3.mean()) > 1.2 * np.exp(full.mean())
    assert after_3.mean() > after_10.mean() > full.mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed=-1: .*give 0 or more"),
        ({"train_tokens": 0}, "train_tokens=0: .*at least 2"),
        ({"valid_tokens": 1}, "valid_tokens=1: .*at least 2"),
        ({"test_tokens": -5}, "test_tokens=-5: .*at least 2"),
        ({"train_tokens": 5000}, r"train_tokens=5000: \d+ of .*do not occur.*; raise train_tokens"),
    ],
)
def test_bad_arguments_are_refused_with_value_reason_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        toy_corpus(**arguments)
    assert "\n" not in str(error.value)
