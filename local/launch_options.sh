# What launchers of commands share: their arguments, which are Kaldi's, and lines in logs. To be
# sourced after common.sh.
#
#   LAUNCHER [--mem 4G] [--gpu 1] [--num-threads 2] [--time 4:00:00] [--max-jobs-run 10]
#            [--config FILE] [JOB=1:4] LOG [--] COMMAND...
#
# Options may stand on either side of JOB=1:4. The word JOB (or another) in LOG and COMMAND stands
# for each job's number.
# shellcheck shell=bash disable=SC2034

# parse_launcher WORD...: sets word, first and last (of the jobs), log_pattern, command, and the
# arrays option_names (with _ for -) and option_values.
parse_launcher() {
  local name
  word="" first=1 last=1 option_names=() option_values=()
  while (($# > 0)); do
    case "$1" in
      -V) shift ;; # of Sun's grid engine; scripts still give it
      -*)
        (($# > 1)) || die "option $1 needs a value"
        name="${1#-}" name="${name#-}"
        option_names+=("${name//-/_}")
        option_values+=("$2")
        shift 2
        ;;
      */*) break ;;
      *=*)
        [[ -z "$word" ]] || die "jobs are given once, not $word=$first:$last and $1"
        [[ "$1" =~ ^([A-Za-z_][A-Za-z_0-9]*)=([0-9]+)(:([0-9]+))?$ ]] ||
          die "jobs are given as JOB=1:4, not $1"
        word="${BASH_REMATCH[1]}" first="${BASH_REMATCH[2]}"
        last="${BASH_REMATCH[4]:-$first}"
        ((first <= last)) || die "$1 names no job"
        shift
        ;;
      *) break ;;
    esac
  done
  (($# > 0)) || die "no log file is given: [OPTIONS] [JOB=1:4] LOG [--] COMMAND..."
  log_pattern="$1"
  shift
  if [[ "${1:-}" == "--" ]]; then shift; fi
  (($# > 0)) || die "no command is given after the log file $log_pattern"
  command=("$@")
  [[ -z "$word" || "$first" == "$last" || "$log_pattern" == *"$word"* ]] ||
    die "the log file $log_pattern lacks the word $word: jobs would share it"
}

# option_value NAME DEFAULT: the last value that was given for an option.
option_value() {
  local number value="$2"
  for number in ${option_names[@]+"${!option_names[@]}"}; do
    if [[ "${option_names[$number]}" == "$1" ]]; then value="${option_values[$number]}"; fi
  done
  printf '%s' "$value"
}

# max_jobs_run: how many jobs may run at the same time; 0 for all.
max_jobs_run() {
  local most
  most="$(option_value max_jobs_run 0)"
  [[ "$most" =~ ^[0-9]+$ ]] || die "--max-jobs-run is a number, not '$most'"
  printf '%s' "$most"
}

# log_of NUMBER: a job's log file.
log_of() {
  if [[ -z "$word" ]]; then
    printf '%s' "$log_pattern"
  else
    printf '%s' "${log_pattern//"$word"/$1}"
  fi
}

# note LOG TEXT...: a line about the job, in its log alone.
note() {
  local log_file="$1"
  shift
  printf '# %s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*" >>"$log_file"
}

# launcher_usage: the comment at the head of the script that is running.
launcher_usage() {
  sed -n '2,${/^#/!q;s/^# \{0,1\}//;p;}' "$0"
}

# help_or_go_on WORD...: shows the usage if that is asked for, or nothing is.
help_or_go_on() {
  case "${1:-}" in
    "" | -h | --help)
      launcher_usage
      [[ -n "${1:-}" ]] || exit 2
      exit 0
      ;;
  esac
}
