#!/usr/bin/env bash
# Runs a command, or several like it in parallel, on a Slurm cluster, each with its own log file.
#
#   local/slurm.sh [OPTIONS] LOG [--] COMMAND...
#   local/slurm.sh [OPTIONS] JOB=1:4 LOG [--] COMMAND...
#
# The arguments are those of local/launch.sh and of Kaldi's slurm.pl. Several jobs are one array;
# the script ends when all have ended, with the status of the first that failed. What was submitted
# is in the folder q beside the logs. Ctrl-C cancels the jobs.
#
#   --mem 16G  --gpu 1  --num-threads 4  --time 8:00:00  --max-jobs-run 10
#   --config FILE    what these options mean to sbatch here, in the format of Kaldi's slurm.conf:
#                      command sbatch --account lab
#                      option mem=* --mem $0
#                      option gpu=0 --partition cpu
#                      option gpu=* --partition gpu --gres gpu:$0
#                      default gpu=0
#
# SLURM_POLL_S is how often the queue is asked, in seconds (5).

set -u
ROOT="$(cd -- "$(dirname -- "$0")/.." && pwd)"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"
# shellcheck source=local/launch_options.sh
. "$ROOT/local/launch_options.sh"

readonly POLL_S="${SLURM_POLL_S:-5}"
# A file system of several machines may show a job's last words later than the queue its end.
readonly POLLS_WITHOUT_SIGN=6
# shellcheck disable=SC2016  # $0 stands for an option's value
readonly DEFAULT_CONFIG='command sbatch
option mem=* --mem $0
option num_threads=* --cpus-per-task $0
option time=* --time $0
option gpu=0
option gpu=* --gres gpu:$0'

job_id=""
# shellcheck disable=SC2329  # called by the trap
cancel_jobs() {
  [[ -z "$job_id" ]] || scancel "$job_id"
  exit 143
}
trap cancel_jobs TERM INT

# read_config: sets config_lines, without comments; of --config FILE or the default.
read_config() {
  local file line
  file="$(option_value config "")"
  [[ -z "$file" || -r "$file" ]] || die "--config $file: no such file"
  config_lines=()
  while IFS= read -r line || [[ -n "$line" ]]; do
    line="${line%%#*}"
    [[ -z "${line// /}" ]] || config_lines+=("$line")
  done < <(if [[ -n "$file" ]]; then cat -- "$file"; else printf '%s\n' "$DEFAULT_CONFIG"; fi)
}

# config_words KIND KEY: sets config_found to the words after "KIND KEY" (or after KIND, where KEY is
# empty) in the last such line; false if there is none.
config_words() {
  local line words skip=1 is_there=1
  [[ -z "$2" ]] || skip=2
  config_found=()
  for line in "${config_lines[@]}"; do
    read -r -a words <<<"$line"
    if [[ "${words[0]}" == "$1" && (-z "$2" || "${words[1]:-}" == "$2") ]]; then
      config_found=(${words[@]+"${words[@]:$skip}"})
      is_there=0
    fi
  done
  return "$is_there"
}

# add_option NAME VALUE: appends to `submit` what the configuration says of an option.
add_option() {
  local name="$1" value="$2" is_required="${3:-}"
  case "$name" in config | max_jobs_run) return ;; esac
  if config_words option "$name=$value" || config_words option "$name=*"; then
    submit+=(${config_found[@]+"${config_found[@]//\$0/"$value"}"})
  elif [[ -z "$is_required" ]]; then
    die "option --${name//_/-}: nobody says what it means; put 'option $name=* ...' into --config"
  fi
}

# choose_options: sets `submit` to sbatch and its options.
choose_options() {
  local number line key
  read_config
  config_words command "" || config_found=(sbatch)
  submit=("${config_found[@]}")
  for number in ${option_names[@]+"${!option_names[@]}"}; do
    add_option "${option_names[$number]}" "${option_values[$number]}"
  done
  for line in "${config_lines[@]}"; do
    read -r key line <<<"$line"
    [[ "$key" == default ]] || continue
    key="${line%%=*}"
    [[ -n "$(option_value "$key" "")" ]] || add_option "$key" "${line#*=}" optional
  done
}

# write_script FILE: what each job runs. It leaves its status in a file, whole or not at all.
write_script() {
  {
    printf '#!/usr/bin/env bash\n'
    # shellcheck disable=SC2016  # for the job to expand
    printf 'cd -- %q || exit\ntask="${SLURM_ARRAY_TASK_ID:-%s}"\n' "$PWD" "$first"
    printf 'log=%q done=%q words=(' "$log_pattern" "$done_pattern"
    printf ' %q' "${command[@]}"
    printf ' )\n'
    # shellcheck disable=SC2016  # for the job to expand
    [[ -z "$word" ]] ||
      printf 'log="${log//%s/$task}" words=("${words[@]//%s/$task}")\n' "$word" "$word"
    cat <<'EOF'
exec >>"$log" 2>&1
printf '# %s %s: started by Slurm, job %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$(uname -n)" "${SLURM_JOB_ID:-?}"
"${words[@]}"
status=$?
printf '# %s ended with status %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$status"
echo "$status" >"$done.$task.part" && mv "$done.$task.part" "$done.$task"
exit "$status"
EOF
  } >"$1" && chmod +x "$1"
}

# submit_jobs: hands the jobs to the queue; sets job_id.
submit_jobs() {
  local number log_file script answer most
  for ((number = first; number <= last; number++)); do
    log_file="$(log_of "$number")"
    { mkdir -p "$(dirname -- "$log_file")/q" && : >"$log_file"; } || die "cannot write $log_file"
    note "$log_file" "submitted from $(uname -n): $(quote "${command[@]}")"
    rm -f -- "$done_pattern.$number"
  done
  script="$done_pattern.sh"
  write_script "$script" || die "cannot write $script"
  most="$(max_jobs_run)" || exit
  if [[ -n "$word" ]]; then
    submit+=(--array "$first-$last")
    ((most == 0)) || submit[-1]+="%$most"
  fi
  submit+=(--job-name "$(basename -- "$done_pattern")" --open-mode truncate
    --output "$done_pattern.${word:+%a.}out")
  answer="$("${submit[@]}" --parsable "$script")" ||
    die "the queue refused the jobs: $(quote "${submit[@]}" "$script")"
  job_id="${answer%%;*}"
  log "job $job_id: $(quote "${submit[@]}" "$script")"
}

# is_queued: whether the queue knows any of the jobs; also where it cannot be asked.
is_queued() {
  local answer
  if answer="$(squeue --noheader --jobs "$job_id" --format %i 2>&1)"; then
    [[ -n "$answer" ]]
  else
    [[ "$answer" != *"Invalid job id"* ]]
  fi
}

all_done() {
  local number
  for ((number = first; number <= last; number++)); do
    [[ -e "$done_pattern.$number" ]] || return 1
  done
}

# wait_for_jobs: until every job has left its status, or the queue has known none for a while.
wait_for_jobs() {
  local without_sign=0
  until all_done; do
    if is_queued; then without_sign=0; else without_sign=$((without_sign + 1)); fi
    ((without_sign < POLLS_WITHOUT_SIGN)) || return 0
    sleep "$POLL_S" &
    wait "$!" # so that a signal is heard at once
  done
}

# report_job NUMBER: what a job ended with, as this function's status; says so if it failed.
report_job() {
  local status=1 state="" log_file
  log_file="$(log_of "$1")"
  if [[ -e "$done_pattern.$1" ]]; then
    status="$(<"$done_pattern.$1")"
  else
    state="$(sacct --noheader --allocations --parsable2 --format State,ExitCode \
      --jobs "$job_id${word:+_$1}" 2>/dev/null | head -n 1)"
    note "$log_file" "ended without a status${state:+ ($state)}"
  fi
  ((status != 0)) || return 0
  tail -n 12 -- "$log_file" | sed 's/^/    /' >&2
  log "a job ended with status $status${state:+ ($state)}; its log is $log_file"
  return "$status"
}

# In a function, so that the script is read whole before it starts: it may be edited meanwhile.
main() {
  local number status failed=0 folder name
  help_or_go_on "$@"
  parse_launcher "$@"
  # Without the job's number: one script, and statuses that end with it.
  name="$(basename -- "$log_pattern" .log)"
  [[ -z "$word" ]] || name="${name//[._-]$word/}" name="${name//"$word"/}"
  folder="$(dirname -- "$log_pattern")"
  [[ -z "$word" ]] || folder="${folder//"$word"/$first}"
  done_pattern="$folder/q/${name:-job}"
  choose_options
  submit_jobs
  wait_for_jobs
  for ((number = first; number <= last; number++)); do
    status=0
    report_job "$number" || status=$?
    ((failed != 0)) || failed="$status"
  done
  exit "$failed"
}

main "$@"
