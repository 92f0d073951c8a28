"""Trees in the layouts of the licensed corpora, glitches included, with their truth.

No recording, transcript or row of a licensed corpus is in here: sentences are made from
the word lists below, votes are drawn, and the sound is noise.
"""
