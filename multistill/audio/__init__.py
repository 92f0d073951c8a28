"""Audio files to mono 16 kHz: containers, decoding, resampling, digests. No torch, no Ray."""

SAMPLE_RATE = 16_000
"""Input of every speech encoder: 16 kHz mono."""

SUFFIXES = frozenset(
    {
        *(".wav", ".wave", ".w64", ".rf64", ".bw64", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
        *(".mp2", ".aif", ".aiff", ".aifc", ".8svx", ".au", ".snd", ".caf", ".sph", ".nist"),
        ".voc",
    }
)
"""Endings of audio files."""
