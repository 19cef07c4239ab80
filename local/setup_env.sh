# Makes the Python environment of the checkout, once, and reuses it. To be sourced; it exports
# SPEAR_PYTHON, the interpreter that every stage runs with.
#
#   SPEAR_PYTHON=/path/to/python   use this interpreter, which has the packages; nothing is installed
#   SPEAR_TORCH_INDEX=URL          package index to take torch from, e.g. one with CPU builds only
#
# Otherwise `.venv` in the checkout is made with the versions of requirements.txt. A marker in it
# names the requirements that it was made from and is written last: an interrupted set-up goes on
# where it stopped, and a changed requirements.txt is followed. A lock lets two scripts start at
# the same time.
# shellcheck shell=bash

SPEAR_ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
export SPEAR_ROOT
# shellcheck source=local/common.sh
. "$SPEAR_ROOT/local/common.sh"

# The oldest Python that the code is written for.
_python_fits() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

# Whether the packages are there that spear always needs; looked for, not imported, to be quick.
_has_packages() {
  "$1" -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec,
    "torch numpy lhotse urllib3 soundfile soxr safetensors yaml jsonargparse tqdm".split())))' \
    2>/dev/null
}

# Prints the first interpreter that fits and can make environments; the tested version comes first.
_find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3 python python3.10; do
    if _python_fits "$name" && "$name" -c 'import ensurepip, venv' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  die "no Python of version 3.10 or newer with its venv module was found" \
    "(Debian and Ubuntu: apt-get install python3-venv); or name one in SPEAR_PYTHON"
}

_requirements_key() {
  cat "$SPEAR_ROOT/requirements.txt" "$SPEAR_ROOT/setup.py" | cksum | tr ' ' '-'
}

# _is_ready VENV: true if the environment was made to its end from the present requirements.
_is_ready() {
  [[ -x "$1/bin/python" && "$(cat "$1/.spear-ready" 2>/dev/null)" == "$(_requirements_key)" ]]
}

# pip by `python -m`: the first line of its script cannot hold a path with spaces everywhere.
_install() {
  local python="$1" torch
  torch="$(grep -m 1 '^torch==' "$SPEAR_ROOT/requirements.txt")"
  run "$python" -m pip install --quiet ${SPEAR_TORCH_INDEX:+--index-url "$SPEAR_TORCH_INDEX"} \
    "$torch" || return 1
  run "$python" -m pip install --quiet -r "$SPEAR_ROOT/requirements.txt" || return 1
  run "$python" -m pip install --quiet --no-deps --editable "$SPEAR_ROOT" || return 1
}

_make_venv() {
  local venv="$1" base
  base="$(_find_python)" || exit 2
  # The lock is on a file that is there anyway; nothing is written into it.
  take_lock 9 "$SPEAR_ROOT/requirements.txt" "$base" "sets up $venv"
  if ! _is_ready "$venv"; then
    log "setting up $venv (once; some minutes)"
    rm -f "$venv/.spear-ready"
    _python_fits "$venv/bin/python" || run "$base" -m venv --clear "$venv" ||
      die "could not make $venv with $base"
    _install "$venv/bin/python" ||
      die "pip failed, see above; the same command goes on from here, or set SPEAR_PYTHON"
    _requirements_key >"$venv/.spear-ready.partial"
    mv "$venv/.spear-ready.partial" "$venv/.spear-ready"
  fi
  exec 9>&-
}

if [[ -n "${SPEAR_PYTHON:-}" ]]; then
  command -v "$SPEAR_PYTHON" >/dev/null || die "SPEAR_PYTHON=$SPEAR_PYTHON is not there"
  SPEAR_PYTHON="$(absolute "$(command -v "$SPEAR_PYTHON")")"
  _python_fits "$SPEAR_PYTHON" || die "SPEAR_PYTHON=$SPEAR_PYTHON is older than Python 3.10"
  # The package may not be installed there; the checkout's is meant in any case.
  PYTHONPATH="$SPEAR_ROOT${PYTHONPATH:+:$PYTHONPATH}"
  _has_packages "$SPEAR_PYTHON" ||
    die "SPEAR_PYTHON=$SPEAR_PYTHON lacks packages: $SPEAR_PYTHON -m pip install -r" \
      "'$SPEAR_ROOT/requirements.txt'"
else
  _is_ready "$SPEAR_ROOT/.venv" || _make_venv "$SPEAR_ROOT/.venv"
  SPEAR_PYTHON="$SPEAR_ROOT/.venv/bin/python"
  # Programs such as shellcheck that come as packages.
  PATH="$SPEAR_ROOT/.venv/bin:$PATH"
fi
# Scripts of one recipe import what several recipes share.
PYTHONPATH="$SPEAR_ROOT/local${PYTHONPATH:+:$PYTHONPATH}"
export SPEAR_PYTHON PATH PYTHONPATH

# On a CPU. The C library gives large blocks back to the system at once and asks for them again: a
# third of a training step went into page faults. And threads of libgomp that wait for each other
# spin for long, which takes the cores from what they wait for when anything else runs (two
# trainings on two cores: 2.2 s a step); those that never spin are slow when nothing else does
# (0.55 s instead of 0.42 s alone). A short spin costs little in either case (0.75 s, 0.46 s).
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-33554432}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
