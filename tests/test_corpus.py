from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax.corpus import (
    make_corpus,
    read_corpus,
    read_tokens,
    streams,
    unigram_perplexity,
    windows,
)
from zaremba_jax.vocabulary import EOS


@given(st.integers(1, 200), st.integers(1, 7), st.integers(1, 9))
def test_every_retained_pair_appears_exactly_once_an_epoch(tokens, batch_size, unroll):
    ids = np.arange(tokens)  # each token names its own place
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


def test_read_tokens_puts_eos_for_each_line_end(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(" the cat \r\n\n sits\ton\u2028it".encode())
    assert read_tokens(path) == ["the", "cat", EOS, EOS, "sits", "on", "it", EOS]
    path.write_text("a\n")
    assert read_tokens(path) == ["a", EOS]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file; give"),
        (b"", "holds no words; give"),
        (b" \n\n", "holds no words; give"),
        (b"caf\xe9\n", "not UTF-8 text at byte 3; convert"),
    ],
)
def test_unreadable_text_is_refused_by_path_and_reason(tmp_path, content, reason):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as error:
        read_tokens(path)
    assert str(error.value).startswith(str(path))


def test_corpus_of_files_encodes_all_with_the_training_vocabulary(tmp_path):
    for name, text in (("train", "a b b"), ("valid", "b"), ("test", "a a")):
        (tmp_path / name).write_text(text)
    corpus = read_corpus("mine", *(tmp_path / name for name in ("train", "valid", "test")))
    assert corpus.vocabulary.words == ("b", EOS, "a")
    assert corpus.valid.tolist() == [0, 1]
    assert corpus.test.tolist() == [2, 2, 1]
    (tmp_path / "test").write_text("a zebra")
    with pytest.raises(ValueError, match=f"^{tmp_path / 'test'}: the word 'zebra'"):
        read_corpus("mine", *(tmp_path / name for name in ("train", "valid", "test")))


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
