#!/usr/bin/env bash
# Runs a command, or several like it in parallel, on this machine, each with its own log file.
#
#   local/launch.sh LOG [--] COMMAND...
#   local/launch.sh [--max-jobs-run N] JOB=1:4 LOG [--] COMMAND...
#
# In the second form the word JOB (or another) in LOG and COMMAND stands for 1 to 4. A single job
# also writes to the terminal; of several only the failures are shown. The exit status is that of
# the first job that failed. The arguments are those of Kaldi's run.pl: --num-threads sets
# OMP_NUM_THREADS; other options (--mem, --gpu, --time) are for queues and change nothing here. A
# site with Slurm puts local/slurm.sh into cmd.sh instead, one with another queue its own launcher.

set -u
ROOT="$(cd -- "$(dirname -- "$0")/.." && pwd)"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"
# shellcheck source=local/launch_options.sh
. "$ROOT/local/launch_options.sh"

tee_pid="" pids=() logs=()
# shellcheck disable=SC2329  # called by the trap
stop_jobs() {
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null
  exit 143
}

# report_failure STATUS LOG: which log to read, and its last lines unless they were on the terminal.
report_failure() {
  if ((last > first)); then tail -n 12 -- "$2" | sed 's/^/    /' >&2; fi
  log "a job ended with status $1; its log is $2"
}

# begin_log LOG COMMAND...: a new log file, which begins with the command.
begin_log() {
  local log_file="$1"
  shift
  { mkdir -p "$(dirname -- "$log_file")" && : >"$log_file"; } || die "cannot write $log_file"
  note "$log_file" "$(uname -n): $(quote "$@")"
  logs+=("$log_file")
}

# start_job LOG COMMAND...: in the background, so that a signal to this script reaches the command.
# Without command substitutions: bash 5.2 cannot run the trap in the middle of one.
start_job() {
  local log_file="$1"
  shift
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
}

# command_of NUMBER: sets `words` to the command of a job.
command_of() {
  words=("${command[@]}")
  if [[ -n "$word" ]]; then words=("${command[@]//"$word"/$1}"); fi
}

# num_running: sets `running` to the number of jobs that have not ended.
num_running() {
  local pid
  running=0
  for pid in ${pids[@]+"${pids[@]}"}; do
    if kill -0 "$pid" 2>/dev/null; then running=$((running + 1)); fi
  done
}

# wait_for_room MOST: until fewer than so many jobs run; 0 is any number.
wait_for_room() {
  local running=0
  if (($1 == 0)); then return; fi
  num_running
  while ((running >= $1)); do
    sleep 0.1
    num_running
  done
}

# In a function, so that the script is read whole before it starts: it may be edited meanwhile.
main() {
  local number status failed=0 most threads words
  help_or_go_on "$@"
  parse_launcher "$@"
  most="$(max_jobs_run)" || exit
  threads="$(option_value num_threads "")"
  [[ -z "$threads" ]] || export OMP_NUM_THREADS="$threads"

  for ((number = first; number <= last; number++)); do
    command_of "$number"
    begin_log "$(log_of "$number")" "${words[@]}"
  done
  trap stop_jobs TERM INT
  for ((number = first; number <= last; number++)); do
    wait_for_room "$most"
    command_of "$number"
    start_job "${logs[number - first]}" "${words[@]}"
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
