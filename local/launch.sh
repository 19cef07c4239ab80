#!/usr/bin/env bash
# Runs a command, or several like it in parallel, on this machine, each with its own log file.
#
#   local/launch.sh LOG -- COMMAND...
#   local/launch.sh JOB=1:4 LOG -- COMMAND...
#
# In the second form the word JOB (or another) in LOG and COMMAND stands for 1 to 4. A single job
# also writes to the terminal; of several only the failures are shown. The exit status is that of
# the first job that failed. A site with a queue can put a launcher with the same arguments into
# cmd.sh.

set -u
ROOT="$(cd -- "$(dirname -- "$0")/.." && pwd)"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"

usage() {
  sed -n '2,${/^#/!q;s/^# \{0,1\}//;p;}' "$0"
}

# report_failure STATUS LOG: which log to read, and its last lines unless they were on the terminal.
report_failure() {
  if ((last > first)); then tail -n 12 -- "$2" | sed 's/^/    /' >&2; fi
  log "a job ended with status $1; its log is $2"
}

first=1 last=1 word="" tee_pid="" pids=() logs=()
# shellcheck disable=SC2329  # called by the trap
stop_jobs() {
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null
  exit 143
}
trap stop_jobs TERM INT

# note LOG TEXT...: a line about the job, in its log alone.
note() {
  local log_file="$1"
  shift
  printf '# %s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*" >>"$log_file"
}

# start_job LOG COMMAND...: in the background, so that a signal to this script reaches the command.
start_job() {
  local log_file="$1"
  shift
  { mkdir -p "$(dirname -- "$log_file")" && : >"$log_file"; } || die "cannot write $log_file"
  note "$log_file" "$(uname -n): $(quote "$@")"
  if ((first == last)); then
    # tee lives on through Ctrl-C, for the command's last words.
    exec 3> >(trap '' INT TERM && exec tee -a -- "$log_file" >&2)
    tee_pid="${!:-}"
    "$@" >&3 2>&1 3>&- &
    pids+=("$!")
    exec 3>&-
  else
    "$@" >>"$log_file" 2>&1 &
    pids+=("$!")
  fi
  logs+=("$log_file")
}

# In a function, so that the script is read whole before it starts: it may be edited meanwhile.
main() {
  local log_pattern number status failed=0
  case "${1:-}" in
    "" | -h | --help)
      usage
      [[ -n "${1:-}" ]] || exit 2
      exit 0
      ;;
  esac

  if [[ "${2:-}" != "--" ]]; then
    [[ "$1" =~ ^([A-Za-z_]+)=([0-9]+):([0-9]+)$ ]] || die "jobs are given as JOB=1:4, not $1"
    word="${BASH_REMATCH[1]}" first="${BASH_REMATCH[2]}" last="${BASH_REMATCH[3]}"
    ((first <= last)) || die "$1 names no job"
    shift
  fi
  [[ $# -ge 3 && "$2" == "--" ]] || die "usage: launch.sh [JOB=1:4] LOG -- COMMAND..."
  log_pattern="$1"
  shift 2

  for ((number = first; number <= last; number++)); do
    if [[ -z "$word" ]]; then
      start_job "$log_pattern" "$@"
    else
      start_job "${log_pattern//"$word"/$number}" "${@//"$word"/$number}"
    fi
  done
  for number in "${!pids[@]}"; do
    status=0
    wait "${pids[$number]}" || status=$?
    [[ -z "$tee_pid" ]] || wait "$tee_pid" || true
    note "${logs[$number]}" "ended with status $status"
    if ((status != 0)); then
      report_failure "$status" "${logs[$number]}"
      ((failed != 0)) || failed="$status"
    fi
  done
  exit "$failed"
}

main "$@"
