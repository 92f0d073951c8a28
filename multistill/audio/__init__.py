"""Audio files to mono 16 kHz: containers, decoding, resampling, digests. No torch, no Ray."""

SAMPLE_RATE = 16_000
"""Input of every speech encoder: 16 kHz mono."""
