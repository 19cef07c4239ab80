#!/usr/bin/env bash
# Runs the real s3prl, hear-validator and X-ARES against a SPEAR model, by hand: their packages are
# no part of the project's environment, since each wants a torchaudio or a tensorflow.
#
#   local/checks/peers.sh
#   local/checks/peers.sh --model exp/model
#
# A throw-away environment sees the packages of the checkout's and gets the peers on top, never
# another torch. torchaudio is the last version that s3prl can be imported with; its compiled part
# belongs to another torch and is taken out, which torchaudio allows for. In tensorflow's place is
# an empty module: hear-validator asks whether a model is tensorflow's and needs it for nothing else.

set -euo pipefail
ROOT="$(cd -- "$(dirname -- "$0")/../.." && pwd)"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"

model=""              # model folder; none: a small one of random weights
work_dir=""           # folder that is kept; none: a temporary one
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"
model="$(absolute "$model")"
work_dir="$(absolute "$work_dir")"
[[ -z "$model" || -d "$model" ]] || die "--model $model is no folder"
# shellcheck source=local/setup_env.sh
. "$ROOT/local/setup_env.sh"

peers=(s3prl==0.4.18 hearvalidator==2021.0.2 xares==0.1.3 torchaudio==2.8.0)
needs=(omegaconf requests tensorboardX loguru jiwer scikit-learn pandas torchmetrics pytorch-ignite
  webdataset)

if [[ -z "$work_dir" ]]; then
  work_dir="$(mktemp -d)"
  trap 'rm -rf "$work_dir"' EXIT
fi
mkdir -p "$work_dir" || die "cannot write into $work_dir"
cd "$ROOT"
export PYTHONPATH="$ROOT" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python="$work_dir/venv/bin/python"

# packages_of PYTHON: the folder where an interpreter's packages lie.
packages_of() {
  "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

make_environment() {
  local packages
  run "$SPEAR_PYTHON" -m venv "$work_dir/venv"
  packages="$(packages_of "$python")"
  printf "import site; site.addsitedir('%s')\n" "$(packages_of "$SPEAR_PYTHON")" \
    >"$packages/checkout.pth"
  "$python" -c 'import numpy, torch
for module in (numpy, torch): print(f"{module.__name__}=={module.__version__.split(chr(43))[0]}")' \
    >"$work_dir/constraints.txt"
  run "$python" -m pip install --quiet -c "$work_dir/constraints.txt" "${needs[@]}"
  run "$python" -m pip install --quiet --no-deps "${peers[@]}"
  rm -f "$packages"/torchaudio/lib/*.so
  "$python" -c 'import tensorflow' 2>/dev/null ||
    printf 'class Module:\n    """No model here is one."""\n' >"$packages/tensorflow.py"
}

# check PART: a part of peers.py, in a folder of its own.
check() {
  mkdir -p "$work_dir/$1"
  run "$python" -W ignore local/checks/peers.py "$1" --model "$model" --work-dir "$work_dir/$1"
}

[[ -e "$work_dir/venv/.ready" ]] || make_environment
touch "$work_dir/venv/.ready"
if [[ -z "$model" ]]; then
  model="$work_dir/model"
  run "$python" local/checks/peers.py model --model "$model"
fi
run "$python" -m pytest -p no:cacheprovider -rs tests/hub/adapters
run "$python" -m hearvalidator.validate spear.hub.adapters.hear --model "$model" --device cpu
check s3prl
check xares
log "s3prl, hear-validator and X-ARES are content with $model"
