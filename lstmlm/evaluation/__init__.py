"""Perplexity of streams, and scores of texts."""
