"""Products in a precision, the embedding, and the softmax with its loss."""
