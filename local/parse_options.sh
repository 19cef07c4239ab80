# Options of a script, Kaldi's way. To be sourced, with the script's arguments, after the defaults:
#
#   speech_dir=""       # folder of recordings
#   max_steps=600       # steps of pre-training
#   keep=false          # a boolean takes true or false
#   . local/parse_options.sh
#
# Every such line of the script, from its beginning to the one that sources this file, is an option:
# --speech-dir sets speech_dir. Files named in the array `OPTION_FILES` (sourced before) count as
# well. --help prints the script's opening comment and all options with their defaults.
# shellcheck shell=bash

_option_script="${BASH_SOURCE[1]}"
_option_names=()
_option_help=()

_collect_options() {
  local line name=""
  while IFS= read -r line || [[ -n "$line" ]]; do
    case "$line" in
      *parse_options.sh*) [[ "$line" == \#* ]] || break ;;
    esac
    if [[ "$line" =~ ^([a-z][a-z0-9_]*)=[^#]*(#\ (.*))?$ ]]; then
      name="${BASH_REMATCH[1]}"
      _option_names+=("$name")
      _option_help+=("${BASH_REMATCH[3]:-}")
    elif [[ -n "$name" && "$line" =~ ^[[:space:]]+#\ (.*)$ ]]; then
      _option_help[${#_option_help[@]} - 1]+=" ${BASH_REMATCH[1]}"
    else
      name=""
    fi
  done <"$1"
}

_print_help() {
  local number name
  sed -n '2,${/^#/!q;s/^# \{0,1\}//;p;}' "$_option_script"
  printf '\nOptions:\n'
  for number in "${!_option_names[@]}"; do
    name="${_option_names[$number]}"
    printf '  --%-18s %s (default: %s)\n' "${name//_/-}" "${_option_help[$number]}" \
      "${!name:-none}"
  done
}

_set_option() {
  local option="$1" value="$2" name="${1#--}" known
  name="${name//-/_}"
  for known in "${_option_names[@]}"; do
    if [[ "$known" == "$name" ]]; then
      if [[ "${!name}" =~ ^(true|false)$ && ! "$value" =~ ^(true|false)$ ]]; then
        _option_error "$option takes true or false, not '$value'"
      fi
      printf -v "$name" '%s' "$value"
      return
    fi
  done
  _option_error "unknown option $option; --help lists all"
}

_option_error() {
  printf '%s: error: %s\n' "$(basename -- "$_option_script")" "$1" >&2
  exit 2
}

# shellcheck disable=SC2154  # OPTION_FILES is the script's
for _option_file in ${OPTION_FILES[@]+"${OPTION_FILES[@]}"} "$_option_script"; do
  _collect_options "$_option_file"
done

while (($# > 0)); do
  case "$1" in
    -h | --help)
      _print_help
      exit 0
      ;;
    --*=*)
      _set_option "${1%%=*}" "${1#*=}"
      shift
      ;;
    --?*)
      _option_word="$1"
      _option_key="${1#--}"
      # The name is looked at first: a typo at the end of the line is a typo, not a missing value.
      [[ " ${_option_names[*]} " == *" ${_option_key//-/_} "* ]] ||
        _option_error "unknown option $_option_word; --help lists all"
      (($# >= 2)) || _option_error "$_option_word needs a value"
      _set_option "$_option_word" "$2"
      shift 2
      ;;
    *) _option_error "unexpected argument '$1'; options look like --name value" ;;
  esac
done
unset _option_file _option_word _option_key
