"""What /openapi.json says beyond the routes' own docstrings."""

from __future__ import annotations

from typing import Any

DESCRIPTION = (
    "Emotions of recordings and transcripts. /stream is a WebSocket: samples in, events out."
)
REFUSED: dict[str, Any] = {
    "description": "why there is no prediction",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error", "reason"],
                "properties": {
                    "error": {"type": "string", "description": "one sentence"},
                    "reason": {"type": "string", "description": "a few words for programs"},
                },
            }
        }
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 403, 408, 413, 415, 422, 503), REFUSED
)
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_PREDICTION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "label": {
            "type": ["string", "null"],
            "description": "the most probable class; null below unsure_below",
        },
        "distribution": {**_NUMBERS, "description": "class to probability"},
        "dimensions": {**_NUMBERS, "description": "valence, arousal, dominance from 1 to 5"},
        "milliseconds": {**_NUMBERS, "description": "decode, speech, text, head, total"},
        "model": {"type": "string"},
        "missing": {**_STRINGS, "description": "what the model reads too and was not given"},
        "notes": {**_STRINGS, "description": "what was read otherwise than it was given"},
    },
}
PREDICT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "audio": {
                            "type": "string",
                            "format": "binary",
                            "description": "the recording: WAV, FLAC, Ogg, MP3",
                        },
                        "text": {"type": "string", "description": "its transcript"},
                        "only": {**_STRINGS, "description": "possible classes"},
                        "unsure_below": {
                            "type": "number",
                            "description": "probability below which there is no label",
                        },
                    },
                }
            }
        },
    },
    "responses": {
        "200": {
            "description": "the prediction",
            "content": {"application/json": {"schema": _PREDICTION}},
        }
    },
}
