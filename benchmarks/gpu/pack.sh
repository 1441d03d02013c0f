#!/usr/bin/env bash
# Fetches what benchmarks/gpu.sh needs on a machine without a network: wheels for Python 3.12 on x86-64 Linux, into
# benchmarks/gpu/wheels, and the Yelp files, into benchmarks/gpu/data. Both folders are ignored by git.
#
#   benchmarks/gpu/pack.sh                  # PYTHON=... names another Python than python3
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
limit_mb=60

# Not torch, and nothing that comes with it: the machine has its own, made for its driver. Nor huggingface_hub and
# tokenizers: an image with transformers has them, and newer ones would ask for further packages.
packages=(transformers trl peft datasets dill multiprocess polars polars-runtime-32 rich markdown-it-py mdurl pygments)

rm -rf "$here/wheels" "$here/data"
mkdir -p "$here/wheels" "$here/data"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --dest "$here/wheels" --constraint "$root/constraints.txt" "${packages[@]}"
"$python" "$here/repack.py" "$here/wheels"

yelp=${ALIGN3GR_DATA:-$root/../shared/data}/yelp
if [ -d "$yelp" ]; then
    tar -C "$yelp" -cJf "$here/data/yelp.tar.xz" Yelp.inter.json Yelp.item.json
else
    echo "no Yelp: $yelp is not there; set ALIGN3GR_DATA to the folder that holds yelp" >&2
fi

du -sh "$here/wheels" "$here/data"
if [ "$(du -sm "$here/wheels" | cut -f1)" -gt "$limit_mb" ]; then
    echo "error: the wheels are larger than $limit_mb MB" >&2
    exit 1
fi
