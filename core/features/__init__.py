"""Posts as model inputs: sentences, embeddings, token sequences, and retrieval over them."""
