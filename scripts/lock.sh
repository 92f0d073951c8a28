#!/usr/bin/env bash
# Write requirements.lock (every package of the developer environment with its version and the
# SHA-256 of its files, for Python 3.11 to 3.13) and constraints.txt (the same versions, for
# `pip install -c`).
#
#   scripts/lock.sh              add and remove packages as pyproject.toml says; keep versions
#   scripts/lock.sh --upgrade    take the newest versions that pyproject.toml allows
#   scripts/lock.sh -P NAME      take the newest version of one package
#
# Needs `uv` (pip install uv); nothing else of the project does.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "scripts/lock.sh: uv is missing; pip install uv" >&2; exit 2; }
# Some documentation tools need 3.11.5; multistill itself runs on 3.11.0.
uv pip compile pyproject.toml --quiet --universal --python-version 3.11.5 \
    --extra dev --extra docs --extra lora --extra m4a --extra microphone --extra onnx --extra postgres --extra serve --extra stream \
    --generate-hashes --no-strip-extras --no-annotate --no-emit-index-url \
    --custom-compile-command scripts/lock.sh --output-file requirements.lock "$@" >/dev/null
{
    echo "# Written by scripts/lock.sh: the versions of requirements.lock."
    # Constraints have no extras.
    sed -n 's/^\([A-Za-z0-9].*==.*[^ ]\) *\\$/\1/p' requirements.lock | sed 's/^\([A-Za-z0-9._-]*\)\[[^]]*\]/\1/'
} > constraints.txt
