#!/usr/bin/env bash
# Every figure that needs a GPU, in one call of at most ten minutes on a bare machine with PyTorch:
#
#     benchmarks/gpu.sh [--cpu] [--wheels FOLDER] [--results FILE]
#
# FILE (default: benchmarks/results/gpu.jsonl) gets a row for each of features, training, search
# and serving; `scripts/performance.py` makes the table "On a GPU" of docs/performance.md from it.
# --cpu runs all in a tiny size without a GPU, to see that it works; give another FILE then.
#
# A machine without a network gets its wheels from FOLDER (default: .whl), which this fills where
# there is one, for the Python of the machine that measures:
#
#     python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 \
#         --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d .whl \
#         $(sed -n 's/^# wheel //p' benchmarks/gpu.sh)
#
# wheel ray==2.60.0
# wheel optuna==5.0.0
# wheel alembic
# wheel sqlalchemy
# wheel mako
# wheel greenlet
# wheel colorlog
# wheel pydantic
# wheel pydantic-core
# wheel annotated-types
# wheel jsonschema
# wheel jsonschema-specifications
# wheel referencing
# wheel rpds-py
# wheel soundfile
# wheel cffi
# wheel pycparser
# wheel soxr
#
# Where no more than some 64 MB travel at once, Ray's wheel goes in pieces over two calls; what a
# call leaves in an ignored folder is there for the next one:
#
#     split -b 45M .whl/ray-*.whl .whl/ray.part. && rm .whl/ray-*.whl
#     first call carries .whl/ray.part.aa and runs: mkdir -p build && cp .whl/ray.part.aa build/
#     second call carries the rest of .whl and runs: cp build/ray.part.aa .whl/; benchmarks/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
cpu=() wheels=.whl results=benchmarks/results/gpu.jsonl
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) cpu=(--cpu) ;;
        --wheels) wheels=$2; shift ;;
        --results) results=$2; shift ;;
        *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    esac
    shift
done
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
if compgen -G "$wheels/ray.part.*" >/dev/null; then
    name=$("$python" -c 'import sys; print("ray-2.60.0-cp3{0}-cp3{0}-manylinux2014_x86_64.whl".format(sys.version_info[1]))')
    cat "$wheels"/ray.part.* >"$wheels/$name" && rm "$wheels"/ray.part.*
fi
if compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl ||
        exit 1
    export PYTHONPATH="$PYTHONPATH:$site"
fi
mkdir -p "$(dirname "$results")"
failed=0
# Seconds of each, 560 in all; the cheap ones first, so that they are there whatever follows.
for step in training:90 serving:80 search:150 features:240; do
    what=${step%:*} seconds=${step#*:}
    echo "== $what, at most $seconds s"
    timeout -k 5 "$seconds" "$python" benchmarks/gpu.py "$what" --results "$results" "${cpu[@]}" || {
        echo "$what failed ($?)"
        failed=1
    }
done
exit "$failed"
