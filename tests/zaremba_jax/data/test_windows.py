from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax.data.windows import TextWindows, streams, windows


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


@pytest.mark.parametrize("ids", [np.ones(99), np.ones(99) > 0, np.ones((9, 11), int)], ids=str)
def test_what_are_no_ids_is_not_cut(ids):
    with pytest.raises(ValueError, match=r"ids of type .*: must be whole numbers in a row; encode"):
        windows(ids, 2, 2)


def test_ids_that_no_window_holds_are_not_cut():
    with pytest.raises(ValueError, match=r"ids from 1099511627776 to .* for a vocabulary of 214"):
        windows(np.arange(99) + 2**40, 2, 2)


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


@given(st.integers(1, 200), st.integers(1, 4), st.integers(1, 9), st.integers(0, 9))
def test_windows_of_an_epoch_start_at_its_random_offset_and_are_as_many_in_all(
    tokens, batch_size, unroll, epoch
):
    ids = np.arange(tokens)
    if tokens < 2 * batch_size * unroll:
        with pytest.raises(ValueError, match=f"at least {2 * batch_size * unroll} .* random_off"):
            TextWindows(ids, batch_size, unroll, seed=0)
        return
    text = TextWindows(ids, batch_size, unroll, seed=0).of_epoch(epoch)
    cut, today = text[:], windows(ids, batch_size, unroll)
    assert 0 <= text.offset < unroll
    assert len(today) - 1 <= len(text) == len(cut) <= len(today)
    np.testing.assert_array_equal(cut, (today[:1] + text.offset) + (cut - cut[:1]))
    np.testing.assert_array_equal(cut[:-1, -1], cut[1:, 0])
    np.testing.assert_array_equal(cut[:, 1:, 0] - cut[:, :-1, 0], 1)
    assert cut.max() < tokens


def test_offsets_are_decided_by_seed_and_epoch_and_reach_every_token_of_a_window():
    text = TextWindows(np.arange(60), 3, 4, seed=7)
    offsets = [text.of_epoch(epoch).offset for epoch in range(40)]
    assert offsets == [text.of_epoch(3).of_epoch(epoch).offset for epoch in range(40)]
    assert set(offsets) == {0, 1, 2, 3}
    other = TextWindows(np.arange(60), 3, 4, seed=8)
    assert offsets != [other.of_epoch(epoch).offset for epoch in range(40)]
    assert offsets[:6] == [0, 0, 1, 1, 2, 0]  # for ever
    assert TextWindows(np.arange(60), 3, 4).of_epoch(5).offset == 0


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


def test_ids_changed_in_memory_are_not_read_from_the_disk_again(tmp_path):
    np.arange(60, dtype=np.uint8).tofile(tmp_path / "ids")
    changed = np.memmap(tmp_path / "ids", np.uint8, "c")
    changed[:] = changed[::-1].copy()
    np.testing.assert_array_equal(windows(changed, 3, 4), windows(np.arange(60)[::-1], 3, 4))


@pytest.mark.parametrize("index", [slice(0, 4, 2), slice(None, None, -1), 0])
def test_windows_that_do_not_follow_each_other_are_refused(index):
    with pytest.raises(TypeError, match="take windows in a row"):
        TextWindows(np.arange(60), 3, 4)[index]
