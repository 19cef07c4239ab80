# Functions that every shell script of the recipes uses: log lines with a time, commands that are
# logged before they run, stages, errors and locks. To be sourced.
# shellcheck shell=bash

# log TEXT...: one line with the time and the place that says it.
log() {
  local depth=1
  # A line on behalf of a helper of this file names the helper's caller.
  while [[ "${BASH_SOURCE[$depth]:-}" == "${BASH_SOURCE[0]}" ]]; do depth=$((depth + 1)); done
  printf '%s (%s:%s) %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" \
    "$(basename -- "${BASH_SOURCE[$depth]:-shell}")" "${BASH_LINENO[$((depth - 1))]}" "$*" >&2
}

# die TEXT...: one line that says what is wrong and what to do; status 2, as the commands' own.
die() {
  printf '%s: error: %s\n' "$(basename -- "$0")" "$*" >&2
  exit 2
}

# quote WORD...: the words as they could be typed into a shell.
quote() {
  local word line=""
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s' "${line# }"
}

# run COMMAND...: logs a command, ready to be typed, and runs it.
run() {
  log "$(quote "$@")"
  "$@"
}

# launch LOG COMMAND...: runs `spear COMMAND...` through the launcher of cmd.sh,
# with the interpreter of setup_env.sh.
launch() {
  local log_file="$1"
  shift
  # shellcheck disable=SC2154  # set by the recipe's cmd.sh
  run "${train_cmd[@]}" "$log_file" "$SPEAR_PYTHON" -m spear "$@"
}

# launch_jobs NUMBER LOG COMMAND...: so many at once; THIS_JOB stands for the job's own number. On
# this machine they share its cores; a queue gives each what cmd.sh asks for.
launch_jobs() {
  local count="$1" log_file="$2" threads cores
  shift 2
  if [[ "$(basename -- "${train_cmd[0]}")" == launch.sh ]]; then
    cores="$(getconf _NPROCESSORS_ONLN)"
    threads="$((cores > count ? cores / count : 1))"
    local -x OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
  fi
  run "${train_cmd[@]}" "THIS_JOB=1:$count" "$log_file" "$SPEAR_PYTHON" -m spear "$@"
}

# launch_training LOG COMMAND...: the same with $nproc processes, under torchrun.
launch_training() {
  local log_file="$1" launcher=()
  shift
  # shellcheck disable=SC2154  # an option of the script
  if ((nproc > 1)); then
    launcher=(-m torch.distributed.run --standalone --nproc-per-node "$nproc")
  fi
  run "${train_cmd[@]}" "$log_file" \
    "$SPEAR_PYTHON" ${launcher[@]+"${launcher[@]}"} -m spear "$@"
}

# side_by_side MOST FUNCTION ITEM...: calls the function with every item, so many at once, which share
# the cores. The status is that of the first that failed; nothing is started after that.
side_by_side() {
  local most="$1" function="$2" item cores pids=()
  shift 2
  most="$((most < $# ? most : $#))"
  if ((most <= 1)); then
    for item in "$@"; do "$function" "$item"; done
    return
  fi
  cores="$(getconf _NPROCESSORS_ONLN)"
  for item in "$@"; do
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(((cores + 1) / most))}" "$function" "$item" &
    pids+=("$!")
    if ((${#pids[@]} == most)); then
      wait_for "${pids[@]}" || return
      pids=()
    fi
  done
  wait_for ${pids[@]+"${pids[@]}"}
}

# wait_for PID...: until all have ended; the status is that of the first that failed.
wait_for() {
  local pid ended status=0
  for pid in "$@"; do
    ended=0
    wait "$pid" || ended=$?
    if ((status == 0)); then status="$ended"; fi
  done
  return "$status"
}

# begin_stage NUMBER TEXT...: true, with a log line, if the stage is among those asked for.
begin_stage() {
  local number="$1"
  shift
  # shellcheck disable=SC2154  # options of the script that sources this
  if ((number < stage || number > stop_stage)); then return 1; fi
  log "stage $number: $*"
}

# absolute PATH: the path from the root, whether or not it exists; an empty one stays empty.
absolute() {
  case "$1" in
    "" | /*) printf '%s' "$1" ;;
    *) printf '%s' "$PWD/${1#./}" ;;
  esac
}

# take_lock FD FILE PYTHON WHAT: waits until no other process holds the file. File descriptor FD
# stays open, and with it the lock, in this shell and in what it starts, however they end.
take_lock() {
  local fd="$1" file="$2" python="$3" what="$4"
  mkdir -p "$(dirname -- "$file")" || die "cannot write into $(dirname -- "$file")"
  eval "exec $fd>>\"\$file\"" || die "cannot write $file"
  if ! lock_fd "$fd" "$python" "LOCK_EX | fcntl.LOCK_NB" 2>/dev/null; then
    log "another process $what; waiting until it is done"
    lock_fd "$fd" "$python" "LOCK_EX"
  fi
}

# flock(1) is not everywhere; Python locks the descriptor that it inherits.
lock_fd() {
  "$2" -c "import fcntl; fcntl.flock($1, fcntl.$3)"
}
