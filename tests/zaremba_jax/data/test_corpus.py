import numpy as np
import pytest

from zaremba_jax.data import corpus as corpus_module
from zaremba_jax.data.corpus import (
    Corpus,
    in_blocks,
    make_corpus,
    mapped_afresh,
    unigram_perplexity,
)
from zaremba_jax.data.units import BYTES
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.data.windows import windows


def test_ids_on_disk_have_the_blocks_fingerprint_and_windows_of_those_in_memory(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(corpus_module, "_BLOCK", 7)
    ids = np.random.default_rng(0).integers(0, 2, 100).astype(np.uint8)
    (tmp_path / "ids").write_bytes(b"header" + ids.tobytes())
    mapped = np.memmap(tmp_path / "ids", np.uint8, "r", offset=6)
    assert not np.shares_memory(mapped_afresh(mapped), mapped)
    np.testing.assert_array_equal(np.concatenate(list(in_blocks(mapped))), ids)
    np.testing.assert_array_equal(windows(mapped, 3, 4), windows(ids, 3, 4))
    np.testing.assert_array_equal(mapped_afresh(mapped[10:20]), ids[10:20])
    first = np.memmap(tmp_path / "ids", np.uint8, "r", offset=6, shape=(90,))
    np.testing.assert_array_equal(mapped_afresh(first), ids[:90])
    changed = np.memmap(tmp_path / "ids", np.uint8, "c", offset=6)
    changed[0] = 1 - ids[0]  # in memory alone
    assert mapped_afresh(changed)[0] == changed[0]
    assert len(list(in_blocks(mapped))) == 15
    vocabulary = Vocabulary(("a", "b"))
    in_memory = Corpus("c", vocabulary, ids.astype(np.int32), ids, ids)
    assert Corpus("c", vocabulary, mapped, mapped, mapped).fingerprint == in_memory.fingerprint


def test_fingerprint_is_the_one_that_checkpoints_have():
    corpus = make_corpus("c", ["a", "b", "a"], ["b"], ["a"])
    assert corpus.fingerprint == "e906eb530958bc94ce92b01eee3ae41a4c7e75cd1665193bddec3d36b5909b5f"


def test_fingerprint_of_a_corpus_changes_with_any_of_its_words():
    texts = ["a", "b", "a", "b"], ["a", "b"], ["b", "a"]
    prints = {make_corpus("c", *texts).fingerprint}
    assert prints == {make_corpus("c", *texts).fingerprint}
    for split in range(3):
        changed = [text[::-1] if k == split else text for k, text in enumerate(texts)]
        prints.add(make_corpus("c", *changed).fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize("name", ["validation text", "test text"])
def test_word_that_the_training_text_lacks_is_refused_by_its_text(name):
    texts = {"training text": ["a"], "validation text": ["a"], "test text": ["a"]}
    corpus = make_corpus("c", *texts.values())
    assert (corpus.name, corpus.vocabulary.words) == ("c", ("a",))
    with pytest.raises(ValueError, match=f"^{name}: the word 'b' is not in the vocab"):
        make_corpus("c", *(texts | {name: ["b"]}).values())


@pytest.mark.parametrize("block", [2**20, 3], ids=["one block", "several"])
def test_unigram_perplexity_predicts_all_but_the_first_word_by_training_frequency(
    monkeypatch, block
):
    monkeypatch.setattr(corpus_module, "_BLOCK", block)
    corpus = make_corpus("c", ["a", "a", "a", "b"], ["a"], ["b", "a", "b"])
    assert unigram_perplexity(corpus) == pytest.approx((3 / 4 * 1 / 4) ** -0.5)


def test_unigram_perplexity_is_none_where_the_training_text_lacks_a_byte():
    ids = np.array([0, 1, 1], np.uint8)
    corpus = Corpus("c", Vocabulary(BYTES, "byte"), ids, ids, np.array([0, 2], np.uint8))
    assert unigram_perplexity(corpus) is None


def test_unigram_perplexity_is_of_the_text_that_is_asked_for():
    corpus = make_corpus("c", list("aaab"), list("aa"), list("ab"))
    assert unigram_perplexity(corpus, "valid") == pytest.approx(4 / 3)
    assert unigram_perplexity(corpus, "test") == pytest.approx(4)
