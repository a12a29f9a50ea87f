"""The built-in corpus: a small artificial language whose exact perplexity is known.

A sentence has a gender g, one of four, and a number n, singular or plural:

    sentence(g, n) -> noun_phrase(g, n) (pp | relative)* verb(g, n) [noun_phrase(g)] adverb* <eos>
    noun_phrase    -> determiner adjective* noun
    pp             -> preposition noun_phrase
    relative       -> "ke" determiner noun(g', n') verb(g', n')

A gender and a number make a kind. A phrase's noun is of the kind in parentheses, or of
any kind if there is none. Kinds share no verb, so a verb is hard to guess for a model
that has forgotten the subject, after any number of phrases with nouns of their own; and
the next sentence tends to keep the gender. A noun ends in a, e, o or u by gender, plus s in the
plural; a verb in the same vowel plus t or nt. Every fourth noun has no plural form
of its own, like "sheep", so the words do not always tell the number.

No rule is recursive, so the grammar is a hidden Markov model: a state is a position
in a rule with the kinds it has to remember, and emits one word.
"""

import dataclasses
import functools
import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from zaremba_jax.data.corpus import Corpus, make_corpus
from zaremba_jax.data.units import EOS
from zaremba_jax.errors import InputError

DETERMINERS = ("la", "un", "tiu", "mia", "via", "nia", "lia", "kia")
PREPOSITIONS = ("de", "en", "al", "sur", "kun", "per", "el", "sub", "por", "tra", "sen", "pri")
VERB_ENDINGS = {"singular": "t", "plural": "nt"}
GENDERS = ("a", "e", "o", "u")
KINDS = tuple(itertools.product(GENDERS, VERB_ENDINGS))
NUM_NOUN_STEMS, VERB_STEMS, NUM_ADJECTIVES, NUM_ADVERBS = 50, 40, 120, 70  # stems: per gender
ZIPF_OFFSET = 2.0

ADJECTIVE, PP, RELATIVE, OBJECT, ADVERB = 0.35, 0.35, 0.2, 0.6, 0.25  # probability of one (more)
ANY_GENDER = 0.2  # probability that a sentence draws a new gender instead of keeping it

Label = tuple[str, ...]
Rules = dict[Label, tuple[Label, dict[Label, float]]]


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenMarkovSource:
    """A hidden Markov model that generates texts; a word's id is its index in `words`.

    With S states and V words, `start` [S] is the distribution of a text's first state,
    row s of `transition` [S, S] that of the state after s, and row s of `emission`
    [S, V] that of the word that s emits.

    Raises:
      ValueError: a table has another shape, or a row that is not a distribution.
    """

    words: tuple[str, ...]
    start: np.ndarray
    transition: np.ndarray
    emission: np.ndarray

    def __post_init__(self):
        (states,), words = self.start.shape, len(self.words)
        shapes = {"start": (states,), "transition": (states, states), "emission": (states, words)}
        for name, shape in shapes.items():
            table = getattr(self, name)
            sums = table.sum(axis=-1)
            if table.shape != shape or table.min() < 0 or np.abs(sums - 1).max() > 1e-9:
                raise ValueError(
                    f"{name}: shape {table.shape}, entries from {table.min():g}, row sums from"
                    f" {sums.min():g} to {sums.max():g}; give rows of probabilities that sum to 1"
                    f" in the shape {shape}"
                )

    def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """Draws a text that begins in the start distribution: ids, int64 [length]."""
        next_states, words = _cumulative(self.transition), _cumulative(self.emission)
        states, ids = _cumulative(self.start), []
        for state_draw, word_draw in rng.random((length, 2)).tolist():
            state = bisect_right(states, state_draw)
            ids.append(bisect_right(words[state], word_draw))
            states = next_states[state]
        return np.array(ids, np.int64)

    def token_nll(self, ids: np.ndarray) -> np.ndarray:
        """-log P(ids[t] | ids[0], ..., ids[t - 1]) for t = 1 to N - 1, in nats, exact.

        The normalised forward algorithm: Rabiner (1989), "A tutorial on hidden
        Markov models", eq. 19-20, scaled as in section V.A.

        Args:
          ids: a text that began in the start distribution, [N] with N at least 2.

        Returns:
          float64 [N - 1].

        Raises:
          ValueError: the text has fewer than 2 tokens, or the source cannot generate it.
        """
        if len(ids) < 2 or min(ids) < 0 or max(ids) >= len(self.words):
            raise ValueError(
                f"{len(ids)} ids from {min(ids, default=0)} to {max(ids, default=0)}: a text has at"
                f" least 2, each the index of one of the source's {len(self.words)} words"
            )
        likelihoods = np.ascontiguousarray(self.emission.T)
        state, probabilities = self.start, np.zeros(len(ids))
        for t, word in enumerate(ids):
            joint = state * likelihoods[word]
            probabilities[t] = joint.sum()
            if probabilities[t] == 0:
                raise ValueError(
                    f"id {word} at position {t}: {self.words[word]!r} cannot follow what comes"
                    " before it; give a text of this source, in its own ids"
                )
            state = (joint / probabilities[t]) @ self.transition
        return -np.log(probabilities[1:])


def _cumulative(probabilities: np.ndarray) -> list:
    sums = np.cumsum(probabilities, axis=-1)
    return (sums / sums[..., -1:]).tolist()  # ends at exactly 1, above every draw


def _zipf(words: Sequence[str]) -> dict[str, float]:
    weights = 1 / (np.arange(1, len(words) + 1) + ZIPF_OFFSET)
    return dict(zip(words, (weights / weights.sum()).tolist(), strict=True))


def _lexicon() -> dict[Label, dict[str, float]]:
    """The words of each class with their probabilities within it."""
    syllables = ["".join(s) for s in itertools.product("bdfgklmnprstvz", "aeiou", "dlmnrstvz")]
    stems = (syllables[239 * n % len(syllables)] for n in range(len(syllables)))  # 239 is prime
    lexicon: dict[Label, dict[str, float]] = {
        ("determiner",): _zipf(DETERMINERS),
        ("preposition",): _zipf(PREPOSITIONS),
        ("relative",): {"ke": 1.0},
        ("end",): {EOS: 1.0},
        ("adjective",): _zipf([next(stems) + "ik" for _ in range(NUM_ADJECTIVES)]),
        ("adverb",): _zipf([next(stems) + "im" for _ in range(NUM_ADVERBS)]),
    }
    for gender in GENDERS:
        nouns = [next(stems) + gender for _ in range(NUM_NOUN_STEMS)]
        plurals = [noun + "s" if rank % 4 else noun for rank, noun in enumerate(nouns, start=1)]
        lexicon["noun", gender, "singular"] = _zipf(nouns)
        lexicon["noun", gender, "plural"] = _zipf(plurals)
        verbs = [next(stems) + gender for _ in range(VERB_STEMS)]
        for number, ending in VERB_ENDINGS.items():
            lexicon["verb", gender, number] = _zipf([verb + ending for verb in verbs])
    return lexicon


def _noun_phrase(role: str, kind: Label, noun: Label, successors: dict[Label, float]) -> Rules:
    adjective_state, noun_state = (f"{role} adjective", *kind), (f"{role} noun", *kind)
    inside = {adjective_state: ADJECTIVE, noun_state: 1 - ADJECTIVE}
    return {
        (f"{role} determiner", *kind): (("determiner",), inside),
        adjective_state: (("adjective",), inside),
        noun_state: (noun, successors),
    }


def _rules() -> Rules:
    """The class of each state's word, and the probabilities of the states after it.

    A class that the lexicon divides, such as ("noun", gender), stands for all its parts, each
    with the same probability.
    """
    rules: Rules = {}
    for gender, number in KINDS:
        kind = (gender, number)
        verb = {("verb", *kind): 1 - PP - RELATIVE}
        until_verb = {("preposition", *kind): PP, ("relative", *kind): RELATIVE} | verb
        rules |= _noun_phrase("subject", kind, ("noun", *kind), until_verb)
        rules |= _noun_phrase("preposition", kind, ("noun",), until_verb)
        rules["preposition", *kind] = ("preposition",), {("preposition determiner", *kind): 1.0}
        clauses = {("relative noun", *kind, *other): 1 / len(KINDS) for other in KINDS}
        rules["relative", *kind] = ("relative",), {("relative determiner", *kind): 1.0}
        rules["relative determiner", *kind] = ("determiner",), clauses
        for other in KINDS:
            clause_verb = ("relative verb", *kind, *other)
            rules["relative noun", *kind, *other] = ("noun", *other), {clause_verb: 1.0}
            rules[clause_verb] = ("verb", *other), until_verb
        until_end = {("adverb", gender): ADVERB, ("end", gender): 1 - ADVERB}
        no_object = {state: (1 - OBJECT) * chance for state, chance in until_end.items()}
        rules["verb", *kind] = ("verb", *kind), no_object | {("object determiner", gender): OBJECT}
        rules |= _noun_phrase("object", (gender,), ("noun", gender), until_end)
        rules["adverb", gender] = ("adverb",), until_end
        openings = {("subject determiner", *other): ANY_GENDER / len(KINDS) for other in KINDS}
        for same in VERB_ENDINGS:
            openings["subject determiner", gender, same] += (1 - ANY_GENDER) / len(VERB_ENDINGS)
        rules["end", gender] = ("end",), openings
    return rules


@functools.cache
def toy_source() -> HiddenMarkovSource:
    """The language as a source; a text's first sentence is equally likely to be of any kind."""
    rules, lexicon = _rules(), _lexicon()
    words = tuple(dict.fromkeys(word for word_class in lexicon.values() for word in word_class))
    word_ids = {word: number for number, word in enumerate(words)}
    state_ids = {state: number for number, state in enumerate(rules)}
    transition, emission = np.zeros((len(rules),) * 2), np.zeros((len(rules), len(words)))
    for row, (label, successors) in enumerate(rules.values()):
        for state, probability in successors.items():
            transition[row, state_ids[state]] = probability
        parts = [part for name, part in lexicon.items() if name[: len(label)] == label]
        for word, probability in itertools.chain.from_iterable(part.items() for part in parts):
            emission[row, word_ids[word]] += probability / len(parts)
    ends = [state_ids["end", gender] for gender in GENDERS]
    return HiddenMarkovSource(words, transition[ends].mean(axis=0), transition, emission)


def toy_corpus(
    seed: int = 0,
    train_tokens: int = 200_000,
    valid_tokens: int = 10_000,
    test_tokens: int = 10_000,
) -> Corpus:
    """Three texts of the language, each with `<eos>` at every sentence end, and the floor.

    `seed` determines the texts, never the language. Each text is drawn independently
    from the start distribution, so that `floor_perplexity`, over all tokens of the test
    split but the first, is exactly that of the source. The language has no `<unk>`: every
    word must occur in training, which 200,000 tokens make almost certain.

    Raises:
      InputError: the seed is negative, a split holds fewer than 2 tokens, or a
        word of the language does not occur in the training split.
    """
    if seed < 0:
        raise InputError(f"seed={seed}: a random seed cannot be negative; give 0 or more")
    sizes = {"train": train_tokens, "valid": valid_tokens, "test": test_tokens}
    for split, size in sizes.items():
        if size < 2:
            raise InputError(f"{split}_tokens={size}: leaves nothing to predict; give at least 2")
    source = toy_source()
    rngs = np.random.default_rng(seed).spawn(len(sizes))
    train, valid, test = map(source.sample, rngs, sizes.values())
    if missing := len(source.words) - len(np.unique(train)):
        raise InputError(
            f"train_tokens={train_tokens}: {missing} of the language's {len(source.words)} words"
            " do not occur in the training split; raise train_tokens to about 200000"
        )
    texts = ([source.words[number] for number in ids] for ids in (train, valid, test))
    floor = float(np.exp(source.token_nll(test).mean()))
    return dataclasses.replace(make_corpus("toy", *texts), floor_perplexity=floor)
