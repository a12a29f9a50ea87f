from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax.data import corpus as corpus_module
from zaremba_jax.data.corpus import (
    Corpus,
    TextWindows,
    blocks,
    make_corpus,
    remapped,
    streams,
    unigram_perplexity,
    windows,
)
from zaremba_jax.data.units import BYTES
from zaremba_jax.data.vocabulary import Vocabulary


@given(st.integers(1, 200), st.integers(1, 7), st.integers(1, 9))
def test_every_retained_pair_appears_exactly_once_an_epoch(tokens, batch_size, unroll):
    ids = np.arange(tokens)  # each token is its own position
    if tokens < batch_size * (unroll + 1):
        with pytest.raises(ValueError, match=f"{tokens} training tokens .*at least"):
            windows(ids, batch_size, unroll)
        return
    cut = windows(ids, batch_size, unroll)
    length = tokens // batch_size
    count = (length - 1) // unroll
    assert cut.shape == (count, unroll + 1, batch_size)
    pairs = Counter(zip(cut[:, :-1].ravel().tolist(), cut[:, 1:].ravel().tolist(), strict=True))
    retained = {
        (stream * length + t, stream * length + t + 1)
        for stream in range(batch_size)
        for t in range(count * unroll)
    }
    assert set(pairs) == retained
    assert set(pairs.values()) == {1}


@pytest.mark.parametrize("size", ["batch_size", "unroll"])
def test_sizes_below_one_are_refused(size):
    with pytest.raises(ValueError, match=f"{size}=0: must be at least 1"):
        windows(np.arange(9), **({"batch_size": 2, "unroll": 2} | {size: 0}))


@given(st.integers(12, 200), st.integers(1, 4), st.integers(1, 3), st.data())
def test_windows_cut_when_asked_for_are_those_of_all(tokens, batch_size, unroll, data):
    ids = np.arange(tokens, dtype=np.uint8)
    cut, expected = TextWindows(ids, batch_size, unroll), windows(ids, batch_size, unroll)
    assert len(cut) == len(expected)
    assert cut.nbytes == expected.nbytes
    first = data.draw(st.integers(0, len(cut)))
    last = data.draw(st.integers(first, len(cut)))
    np.testing.assert_array_equal(cut[first:last], expected[first:last])
    assert cut[first:last].dtype == np.int32


def test_ids_on_disk_have_the_blocks_fingerprint_and_windows_of_those_in_memory(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(corpus_module, "_BLOCK", 7)
    ids = np.random.default_rng(0).integers(0, 2, 100).astype(np.uint8)
    ids.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", np.uint8, "r")
    assert not np.shares_memory(remapped(mapped), mapped)
    np.testing.assert_array_equal(np.concatenate(list(blocks(mapped))), ids)
    np.testing.assert_array_equal(windows(mapped, 3, 4), windows(ids, 3, 4))
    np.testing.assert_array_equal(remapped(mapped[10:20]), ids[10:20])
    assert len(list(blocks(mapped))) == 15
    vocabulary = Vocabulary(("a", "b"))
    in_memory = Corpus("c", vocabulary, ids.astype(np.int32), ids, ids)
    assert Corpus("c", vocabulary, mapped, mapped, mapped).fingerprint == in_memory.fingerprint


def test_fingerprint_is_the_one_that_checkpoints_have():
    corpus = make_corpus("c", ["a", "b", "a"], ["b"], ["a"])
    assert corpus.fingerprint == "e906eb530958bc94ce92b01eee3ae41a4c7e75cd1665193bddec3d36b5909b5f"


def test_windows_follow_each_other_in_every_stream():
    cut = windows(np.arange(100), batch_size=4, unroll=5)
    np.testing.assert_array_equal(cut[:-1, -1], cut[1:, 0])
    np.testing.assert_array_equal(cut[0, 0], [0, 25, 50, 75])


def test_streams_are_contiguous_and_drop_the_tail():
    np.testing.assert_array_equal(streams(np.arange(11), 3), [[0, 3, 6], [1, 4, 7], [2, 5, 8]])


def test_sizes_of_the_penn_treebank_give_the_paper_s_windows():
    ids = np.zeros(929_589, np.int32)
    assert len(windows(ids, 20, 20)) == 2323
    assert len(windows(ids, 20, 35)) == 1327


def test_fingerprint_of_a_corpus_changes_with_any_of_its_words():
    texts = ["a", "b", "a", "b"], ["a", "b"], ["b", "a"]
    prints = {make_corpus("c", *texts).fingerprint}
    assert prints == {make_corpus("c", *texts).fingerprint}
    for split in range(3):
        changed = [text[::-1] if k == split else text for k, text in enumerate(texts)]
        prints.add(make_corpus("c", *changed).fingerprint)
    assert len(prints) == 4


def test_unigram_perplexity_predicts_all_but_the_first_word_by_training_frequency():
    corpus = make_corpus("c", ["a", "a", "a", "b"], ["a"], ["b", "a", "b"])
    assert unigram_perplexity(corpus) == pytest.approx((3 / 4 * 1 / 4) ** -0.5)


def test_unigram_perplexity_is_none_where_the_training_text_lacks_a_byte():
    ids = np.array([0, 1, 1], np.uint8)
    corpus = Corpus("c", Vocabulary(BYTES, "byte"), ids, ids, np.array([0, 2], np.uint8))
    assert unigram_perplexity(corpus) is None


def test_ids_changed_in_memory_are_not_read_from_the_disk_again(tmp_path):
    np.arange(60, dtype=np.uint8).tofile(tmp_path / "ids")
    changed = np.memmap(tmp_path / "ids", np.uint8, "c")
    changed[:] = changed[::-1].copy()
    np.testing.assert_array_equal(windows(changed, 3, 4), windows(np.arange(60)[::-1], 3, 4))


@pytest.mark.parametrize("index", [slice(0, 4, 2), slice(None, None, -1), 0])
def test_windows_that_do_not_follow_each_other_are_refused(index):
    with pytest.raises(TypeError, match="take windows in a row"):
        TextWindows(np.arange(60), 3, 4)[index]
