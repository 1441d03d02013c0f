#!/usr/bin/env bash
# Everything worth measuring on one GPU, in one call of less than ten minutes: docs/gpu.md says what and why.
#
#   benchmarks/gpu.sh                     # all parts; gpu.json and gpu.md in $OUT, or in benchmarks/results
#   benchmarks/gpu.sh --only beam         # some of them
#   benchmarks/gpu.sh --tiny              # that every part runs, on a CPU too, in minutes
#
# PYTHON names another Python than python3. Packages that it lacks are taken from benchmarks/gpu/wheels, Yelp from
# benchmarks/gpu/data where $ALIGN3GR_DATA is not set; benchmarks/gpu/pack.sh fills both folders.
set -euo pipefail
started=$SECONDS
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

wheels=("$root"/benchmarks/gpu/wheels/*.whl)
if [ -e "${wheels[0]}" ] && ! "$python" -c 'import datasets, peft, polars, rich, trl' 2>/dev/null; then
    # Into a folder in front of the path, not a virtual environment: where python3 is in one itself, as on images with
    # PyTorch, one made from it sees the system's packages and not PyTorch. --no-deps leaves torch as it is.
    if "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" \
        "${wheels[@]}"; then
        export PYTHONPATH="$scratch/site:$PYTHONPATH"
        if ! "$python" -c 'from transformers import LlamaForCausalLM'; then
            echo "the transformers of the wheels does not run here; going on with the machine's own" >&2
            rm -rf "$scratch"/site/transformers*
        fi
    else
        echo "the wheels do not fit $("$python" --version); going on without them" >&2
    fi
fi

# Manifests name the version of align3gr; a checkout that was copied here alone has no metadata of an installation.
export PYTHONPATH="$scratch/about:$PYTHONPATH"
"$python" - "$scratch/about" <<'EOF'
import importlib.metadata
import pathlib
import sys

import align3gr

try:
    importlib.metadata.version("align3gr")
except importlib.metadata.PackageNotFoundError:
    folder = pathlib.Path(sys.argv[1], f"align3gr-{align3gr.__version__}.dist-info")
    folder.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: align3gr\nVersion: {align3gr.__version__}\n"
    folder.joinpath("METADATA").write_text(text)
EOF

data=$root/benchmarks/gpu/data/yelp.tar.xz
if [ -z "${ALIGN3GR_DATA:-}" ] && [ -f "$data" ]; then
    mkdir -p "$scratch/data/yelp"
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' \
        "$data" "$scratch/data/yelp"
    export ALIGN3GR_DATA="$scratch/data"
fi

cd "$root"
"$python" -m benchmarks.gpu --seconds $((570 - SECONDS + started)) "$@"
