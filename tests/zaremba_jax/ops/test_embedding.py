"""The embedding's gradient: the sum over all positions of a word, on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaremba_jax.ops.embedding import embedding_lookup, segment_sum_by_matmul


@pytest.mark.parametrize("words", [4, 12, 40])  # fewer words than tokens, as many, more
def test_gradient_of_a_row_is_the_sum_over_the_places_of_its_word(words):
    source = np.random.default_rng(words)
    embedding = source.normal(size=(words, 3)).astype(np.float32)
    tokens = source.integers(0, words, (4, 3))
    weights = source.normal(size=(4, 3, 3)).astype(np.float32)
    expected = np.zeros((words, 3))
    for index in np.ndindex(4, 3):
        expected[tokens[index]] += weights[index]

    rows, pull_back = jax.vjp(
        lambda x: embedding_lookup(x, jnp.asarray(tokens)), jnp.asarray(embedding)
    )
    np.testing.assert_array_equal(rows, embedding[tokens])
    np.testing.assert_allclose(pull_back(jnp.asarray(weights))[0], expected, atol=1e-6)
    summed = segment_sum_by_matmul(
        jnp.asarray(tokens.ravel()), jnp.asarray(weights.reshape(12, 3)), words
    )
    np.testing.assert_allclose(summed, expected, atol=1e-6)
