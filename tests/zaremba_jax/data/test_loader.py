"""The device gets the same windows whether all of them reside there or they come in chunks."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zaremba_jax.data.loader import MAX_HOST_BYTES, WindowLoader, fits
from zaremba_jax.data.windows import TextWindows, windows
from zaremba_jax.parallel.mesh import make_mesh

IDS = np.random.default_rng(0).integers(0, 200, 90).astype(np.uint8)
TEXT = TextWindows(IDS, batch_size=3, unroll=4)  # 7 windows
WHOLE = windows(IDS, 3, 4)


class Watched(TextWindows):
    """Records what was cut."""

    def __getitem__(self, index):
        cuts.append((index.start, index.stop))
        return super().__getitem__(index)


cuts: list[tuple[int | None, int | None]] = []


@pytest.fixture
def watched():
    cuts.clear()
    return Watched(IDS, 3, 4)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("spread", [True, False])
def test_every_chunk_is_that_of_the_text_in_any_order(resident, spread):
    mesh = make_mesh(jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec()) if spread else None
    loader = WindowLoader(TEXT, sharding, resident)
    assert len(loader) == 7
    for first, last in [(0, 3), (3, 6), (6, 7), (0, 3), (5, 7), (2, 4), (4, 2), (4, 5)]:
        chunk = loader[first:last]
        loader.prefetch()
        np.testing.assert_array_equal(chunk, WHOLE[first:last])
        assert chunk.dtype == np.int32
        assert sharding is None or chunk.sharding == sharding
    with pytest.raises(TypeError, match="take windows in a row"):
        loader[::2]


def test_chunks_of_an_epoch_are_cut_once_and_ahead_of_their_use(watched):
    loader = WindowLoader(watched, resident=False)
    assert cuts == []
    for first, last, ahead in [(0, 3, (3, 6)), (3, 6, (6, 7)), (6, 7, (0, 3)), (0, 3, (3, 6))]:
        loader[first:last]
        loader.prefetch()
        loader.prefetch()
        assert cuts[-1] == ahead
    assert cuts == [(0, 3), (3, 6), (6, 7), (0, 3), (3, 6)]


@pytest.mark.parametrize("resident", [True, False])
def test_every_epoch_has_its_own_offset_whether_its_windows_were_sent_ahead_or_not(resident):
    text = TextWindows(IDS, 3, 4, seed=0)
    loader = WindowLoader(text, resident=resident)
    assert len(loader) == 6
    offsets = set()
    for epoch in (3, 4, 5, 0, 1, 2, 2):  # first as one that is resumed
        expected = text.of_epoch(epoch)[:]
        for first, last in [(0, 4), (4, 6)]:
            loader.begin(epoch)
            np.testing.assert_array_equal(loader[first:last], expected[first:last])
            loader.prefetch()
        offsets.add(text.of_epoch(epoch).offset)
    assert len(offsets) > 1


def test_first_chunk_of_the_next_epoch_is_sent_ahead_with_its_offset():
    cuts.clear()
    loader = WindowLoader(Watched(IDS, 3, 4, seed=0), resident=False)
    for epoch in range(4):
        loader.begin(epoch)
        loader[0:6]
        loader.prefetch()
    assert cuts == [(0, 6)] * 5


def test_resident_text_is_cut_once_and_for_all(watched):
    loader = WindowLoader(watched, resident=True)
    for first in range(6):
        loader[first : first + 1]
        loader.prefetch()
    assert len(cuts) == 1


@pytest.mark.parametrize(
    ("nbytes", "memory", "expected"),
    [
        (MAX_HOST_BYTES, None, True),
        (MAX_HOST_BYTES + 1, None, False),
        (20, {"bytes_limit": 100, "bytes_in_use": 20}, True),
        (21, {"bytes_limit": 100, "bytes_in_use": 20}, False),
        (25, {"bytes_limit": 100}, True),
    ],
)
def test_a_text_fits_where_it_leaves_the_room_that_a_model_needs(nbytes, memory, expected):
    assert fits(nbytes, SimpleNamespace(memory_stats=lambda: memory)) == expected


def test_text_is_streamed_where_it_does_not_fit(watched, monkeypatch):
    monkeypatch.setattr("zaremba_jax.data.loader.MAX_HOST_BYTES", watched.nbytes - 1)
    WindowLoader(watched)
    assert cuts == []
    monkeypatch.setattr("zaremba_jax.data.loader.MAX_HOST_BYTES", watched.nbytes)
    WindowLoader(watched)
    assert cuts == [(None, None)]
