#!/usr/bin/env bash
# Compares the transducer losses, and the adapter for k2's, with the real k2, by hand: its newest
# wheel on the package index is for Python 3.10 and torch 1.13, which are no part of the project's
# environment.
#
#   local/checks/k2.sh --python ~/.pyenv/versions/3.10.13/bin/python
#   local/checks/k2.sh --python python3.10 --benchmark true
#
# A throw-away environment gets k2 and torch, and of the CUDA libraries that this torch names only
# the four that it cannot be imported without.

set -euo pipefail
ROOT="$(cd -- "$(dirname -- "$0")/../.." && pwd)"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"

python=python3.10     # Python 3.10, for k2
work_dir=""           # folder that is kept, with the environment; none: a temporary one
benchmark=false       # true: measure both sides' speed and memory as well
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"
work_dir="$(absolute "$work_dir")"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null ||
  die "--python $python is no Python 3.10, for which k2 has a wheel"
# shellcheck source=local/setup_env.sh
. "$ROOT/local/setup_env.sh"

packages=(k2==1.23.4 torch==1.13.1 typing_extensions 'numpy<2' graphviz
  nvidia-cublas-cu11==11.10.3.66 nvidia-cuda-nvrtc-cu11==11.7.99
  nvidia-cuda-runtime-cu11==11.7.99 nvidia-cudnn-cu11==8.5.0.96)

if [[ -z "$work_dir" ]]; then
  work_dir="$(mktemp -d)"
  trap 'rm -rf "$work_dir"' EXIT
fi
mkdir -p "$work_dir" || die "cannot write into $work_dir"
cd "$ROOT"
export PYTHONPATH="$ROOT"
k2_python="$work_dir/venv/bin/python"

if [[ ! -e "$work_dir/venv/.ready" ]]; then
  run "$python" -m venv "$work_dir/venv"
  run "$k2_python" -m pip install --quiet --no-deps "${packages[@]}"
  touch "$work_dir/venv/.ready"
fi
run "$k2_python" local/checks/k2_losses.py k2 --file "$work_dir/k2.pt"
run "$SPEAR_PYTHON" local/checks/k2_losses.py compare --file "$work_dir/k2.pt"
if [[ "$benchmark" == true ]]; then
  run "$SPEAR_PYTHON" local/benchmarks/rnnt_speed.py --k2-python "$k2_python"
fi
log "spear's transducer losses and its adapter agree with k2"
