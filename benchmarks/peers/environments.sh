#!/usr/bin/env bash
# An environment of its own for each peer, and one for multistill with its openSMILE extra.
#
#     benchmarks/peers/environments.sh FOLDER [PYTHON]
#
# PYTHON (default: python) belongs to the environment that multistill is installed in. A peer sees
# its packages behind its own, so all run on the same torch, which is too large to have six times;
# whatever a peer pins otherwise is installed into its own environment and wins there. About 2 GB.
set -euo pipefail

folder=${1:?"give the folder for the environments"}
python=${2:-python}
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$folder"
"$python" -c '
from importlib.metadata import version
for name in ("torch", "torchaudio"):
    print(f"{name}=={version(name)}")' >"$folder/same.txt"

make() {
    local name=$1
    shift
    echo "$name: $*"
    "$python" -m venv "$folder/$name"
    echo "$site" >"$folder/$name/lib/$(basename "$(dirname "$site")")/site-packages/shared.pth"
    "$folder/$name/bin/python" -m pip install --quiet --constraint "$folder/same.txt" "$@"
}

make multistill opensmile==2.6.0
make datasets datasets==5.2.0
make lightning lightning==2.6.6
make s3prl s3prl==0.4.18 'transformers<5' # its last hidden state lacks the final norm with 5
# The Optuna sweeper asks for a development version of Hydra, and pip then takes 1.4.0rc3, with which
# the sweeper does not run.
make autrainer autrainer==0.10.0 hydra-optuna-sweeper==1.3.0 hydra-core==1.3.2 omegaconf==2.3.0
make nkululeko nkululeko==1.14.1
