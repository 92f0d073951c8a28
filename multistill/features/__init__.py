"""Encode a corpus once, with Ray Data, into a store of speech and text states for all trials."""
