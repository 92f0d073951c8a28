"""Speech and text encoders: Hugging Face models, packaged weights, fixed transforms, placeholders.

`registry` resolves the names of a job file and loads encoders; everything else is reached
through it. To add an encoder:

- Implement `SpeechEncoder` or `TextEncoder` from `base` (states, frame counts, `EncoderInfo`).
- An encoder that needs no download: add its name and a builder to `BUILT_IN_SPEECH` or
  `BUILT_IN_TEXT` in `registry`. One that needs no GPU also goes into `features/sizing.py`.
- Weights inside an ordinary Python package: an entry in `packaged`, besides.
- A Hugging Face model that the classes here cannot run: its `model_type` in `kinds`, and a builder
  in `registry`.

The tests in `tests/encoders` state what an encoder has to guarantee, above all that the states
of a clip do not depend on the other clips of its batch.
"""
