"""Encode once: speech and text states of a whole corpus, in a store that every trial reads."""
