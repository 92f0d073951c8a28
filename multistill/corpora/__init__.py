"""Corpora to one manifest: loaders, labels, splits and the quality report."""
