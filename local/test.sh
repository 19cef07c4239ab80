#!/usr/bin/env bash
# Lint, types, and tests, with the environment of the checkout, which is set up on the first call.
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

only=all              # all, lint, types, shell, numbers or tests
jobs=2                # processes that run tests
tests=""              # file or folder of tests; all where empty
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"
[[ "$only" =~ ^(all|lint|types|shell|numbers|tests)$ ]] ||
  die "--only is all, lint, types, shell, numbers or tests, not '$only'"
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

# program NAME: prints where a program that came as a package lies, beside the interpreter if it can.
program() {
  local beside
  beside="$(dirname -- "$SPEAR_PYTHON")/$1"
  if [[ -x "$beside" ]]; then printf '%s\n' "$beside"; else printf '%s\n' "$1"; fi
}

lint() {
  local status=0
  "$SPEAR_PYTHON" -m ruff check . || status=1
  "$SPEAR_PYTHON" -m ruff format --check . || status=1
  "$(program lint-imports)" --no-logo --no-cache || status=1
  return "$status"
}

types() {
  "$SPEAR_PYTHON" -m mypy
}

shell() {
  local files=()
  while IFS= read -r -d '' file; do files+=("$file"); done < <(
    find local recipes .ci -name '*.sh' -print0 -o -path '.ci/run' -print0
  )
  "$(program shellcheck)" --external-sources --source-path="$ROOT" "${files[@]}" &&
    printf '%s shell scripts are clean\n' "${#files[@]}"
}

pytest() {
  "$SPEAR_PYTHON" -m pytest -n "$jobs" --dist loadgroup ${tests:+"$tests"}
}

# What compares numbers, with the vector instructions of other processors, and with two threads.
numbers() {
  local capability status=0 threads=2
  for capability in default avx2; do
    printf 'ATEN_CPU_CAPABILITY=%s, threads: %s\n' "$capability" "$threads"
    ATEN_CPU_CAPABILITY="$capability" SPEAR_TEST_THREADS="$threads" \
      "$SPEAR_PYTHON" -m pytest -n "$jobs" --dist loadgroup -m numbers || status=1
    threads=1
  done
  return "$status"
}

part lint lint
part types types
part shell shell
part numbers numbers
# Before the tests, so that their closing line is the last one.
if ((${#failed[@]} > 0)); then printf '\nfailed: %s\n' "${failed[*]}" >&2; fi
part tests pytest
((${#failed[@]} == 0))
