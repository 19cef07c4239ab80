#!/usr/bin/env bash
# Runs the tests of the transformers classes and of exported folders with other versions of
# transformers than the one in requirements.txt, by hand.
#
#   local/checks/transformers.sh
#   local/checks/transformers.sh --versions "4.50.3 5.0.0"
#
# For each a throw-away environment sees the packages of the checkout's and gets on top that
# transformers with what it asks for in place of newer ones, never another torch.

set -euo pipefail
ROOT="$(cd -- "$(dirname -- "$0")/../.." && pwd)"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"

versions="4.50.3 4.57.6 5.0.0"  # beside the tested one
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"
# shellcheck source=local/setup_env.sh
. "$ROOT/local/setup_env.sh"

work_dir="$(mktemp -d)"
trap 'rm -rf "$work_dir"' EXIT
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
site="$("$SPEAR_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

for version in $versions; do
  log "transformers $version"
  python="$work_dir/$version/bin/python"
  run "$SPEAR_PYTHON" -m venv "$work_dir/$version"
  run "$python" -m pip install --quiet "transformers==$version"
  printf '%s\n' "$site" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"
  run "$python" -m pytest -q tests/hub/hf tests/hub/test_remote_code.py tests/hub/test_transformers_hook.py tests/asr/apply/test_export_recognizer.py tests/teachers
done
log "all passed"
