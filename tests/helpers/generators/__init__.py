"""Folder trees in the layouts of the licensed corpora, with known defects and expected records.

Nothing is taken from a licensed corpus: sentences come from the word lists in `parts`, votes
are drawn at random, and the sound is noise.
"""
