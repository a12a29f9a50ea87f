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
from collections.abc import Sequence

import numpy as np

from zaremba_jax.data.corpus import Corpus, make_corpus
from zaremba_jax.data.hidden_markov import HiddenMarkovSource
from zaremba_jax.data.units import EOS
from zaremba_jax.errors import InputError
from zaremba_jax.limits import whole_number

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
        sizes[split] = whole_number(f"{split}_tokens", size)
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
