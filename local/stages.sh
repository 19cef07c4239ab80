# The stages of the whole job, from recordings to a word error rate, which recipes share: a recipe
# sets the inputs (speech_dir, text, utt2spk, test_ids, valid_ids, join, audio_dir), names its
# folders of YAML files in the array conf_dirs, and calls check_options and run_stages.
#
# Every stage is one or two `spear` commands that can be typed by hand as they are logged, do only
# what is missing, and go on where a killed one stopped. To be sourced, before parse_options.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# Options that every recipe has (parse_options.sh reads these lines).
stage=0               # first stage to run
stop_stage=12         # last stage to run
output_dir=""         # folder for data/ and exp/; the recipe's own where empty
conf_dir=""           # folder of your own YAML files (pretrain.yaml, ...), laid over the recipe's
wavlm=""              # WavLM, the speech teacher: hub id or folder; a small random one where empty
wavlm_layer=""        # its transformer block; 21 for WavLM Large and the last for others where empty
dasheng=""            # Dasheng, the audio teacher: .pt file, folder or hub id; a small random one
  # where empty
wavlm_codebooks=16    # N, tokens per frame of the speech teacher
dasheng_codebooks=8   # N, tokens per frame of the audio teacher
recheck=3             # cuts of each folder whose tokens stage 6 extracts anew and compares
audio_repeats=1       # times that each clip of general audio comes per epoch of pre-training
nproc=1               # training processes; above 1 they run under torchrun
num_jobs=2            # jobs of the other stages that run in parallel
max_steps=""          # steps of pre-training; as in the configuration where empty
asr_max_steps=""      # steps of each ASR training; as in the configuration where empty
device=auto           # auto, cpu or cuda

readonly SPEECH_TEACHER=wavlm AUDIO_TEACHER=dasheng

# run_stages: all stages from $stage to $stop_stage.
run_stages() {
  set_paths
  take_lock 8 "$output_dir/exp/.lock" "$SPEAR_PYTHON" "works in $output_dir"
  if begin_stage 0 "teachers"; then make_teachers; fi
  if begin_stage 1 "cut manifests"; then prepare_corpora; fi
  if begin_stage 2 "shards"; then make_shards; fi
  if begin_stage 3 "sample of teacher frames"; then for_teachers embed_frames; fi
  if begin_stage 4 "quantisers"; then for_teachers train_quantizer; fi
  if begin_stage 5 "teacher tokens"; then extract_tokens; fi
  if begin_stage 6 "verification"; then verify_shards; fi
  if begin_stage 7 "pre-training"; then pretrain; fi
  if begin_stage 8 "export"; then export_model; fi
  if begin_stage 9 "ASR from the pre-trained encoder"; then finetune finetuned init; fi
  if begin_stage 10 "ASR from scratch"; then finetune scratch init_config; fi
  if begin_stage 11 "decoding"; then decode_both; fi
  if begin_stage 12 "summary"; then summarize; fi
}

# check_options: what can be refused before anything is set up or started.
check_options() {
  local name
  [[ -n "$speech_dir$audio_dir" ]] || die "give --speech-dir, --audio-dir or both"
  [[ -z "$conf_dir" || -d "$conf_dir" ]] || die "--conf-dir $conf_dir: no such folder"
  for name in stage stop_stage; do
    [[ "${!name}" =~ ^[0-9]+$ ]] || die "--${name//_/-} is a stage's number, not '${!name}'"
  done
  for name in nproc num_jobs wavlm_codebooks dasheng_codebooks audio_repeats; do
    [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || die "--${name//_/-} is 1 or more, not '${!name}'"
  done
  [[ "$recheck" =~ ^[0-9]+$ ]] || die "--recheck is 0 or more, not '$recheck'"
}

# Paths and lists that follow from the options.
set_paths() {
  output_dir="$(absolute "$output_dir")"
  data="$output_dir/data"
  exp="$output_dir/exp"
  wavlm_path="${wavlm:-$exp/teachers/wavlm}"
  dasheng_path="${dasheng:-$exp/teachers/dasheng.pt}"
  speech_shards=() audio_shards=() teachers=()
  if [[ -n "$speech_dir" ]]; then
    speech_shards=("$data/speech_train" "$data/speech_valid")
    [[ -z "$test_ids" ]] || speech_shards+=("$data/speech_test")
    teachers+=("$SPEECH_TEACHER")
  fi
  if [[ -n "$audio_dir" ]]; then
    audio_shards=("$data/audio_train" "$data/audio_valid")
    teachers+=("$AUDIO_TEACHER")
  fi
  all_shards=(${speech_shards[@]+"${speech_shards[@]}"} ${audio_shards[@]+"${audio_shards[@]}"})
}

# config_options NAME: sets `configs` to --config for NAME.yaml of every folder that has one; the
# later file overlays the earlier.
config_options() {
  local folder
  configs=()
  for folder in "${conf_dirs[@]}" ${conf_dir:+"$conf_dir"}; do
    [[ ! -f "$folder/$1.yaml" ]] || configs+=(--config "$folder/$1.yaml")
  done
}

# json_list WORD...: the words as a JSON list of strings.
json_list() {
  local word line=""
  for word in "$@"; do
    word="${word//\\/\\\\}"
    line+=", \"${word//\"/\\\"}\""
  done
  printf '[%s]' "${line#, }"
}

# json_sources FOLDER...: the shard folders as `spear pretrain` takes them; general audio
# to train on comes as often as --audio-repeats says.
json_sources() {
  local folder line="" repeats
  for folder in "$@"; do
    repeats=1
    if [[ "$folder" == "$data/audio_train" ]]; then repeats="$audio_repeats"; fi
    line+=", {\"path\": $(json_string "$folder"), \"weight\": $repeats}"
  done
  printf '[%s]' "${line#, }"
}

json_string() {
  local list
  list="$(json_list "$1")"
  list="${list#[}"
  printf '%s' "${list%]}"
}

# teacher_options NAME: sets `teacher` to the options that name a teacher.
teacher_options() {
  teacher=(--teacher.name "$1" --device "$device")
  if [[ "$1" == "$SPEECH_TEACHER" ]]; then
    teacher+=(--teacher.path "$wavlm_path")
    [[ -z "$wavlm_layer" ]] || teacher+=(--teacher.layer "$wavlm_layer")
  else
    teacher+=(--teacher.path "$dasheng_path")
  fi
}

# teacher_shards NAME: sets `shards` to the folders that get the teacher's tokens: the speech
# teacher's stand everywhere, the audio teacher's with general audio (the asymmetric loss).
teacher_shards() {
  if [[ "$1" == "$SPEECH_TEACHER" ]]; then
    shards=("${all_shards[@]}")
  else
    shards=("${audio_shards[@]}")
  fi
}

# codebooks_of NAME
codebooks_of() {
  if [[ "$1" == "$SPEECH_TEACHER" ]]; then
    printf '%s' "$wavlm_codebooks"
  else
    printf '%s' "$dasheng_codebooks"
  fi
}

# Stage 0. Real teachers are named by options; otherwise small ones in the official formats.
make_teachers() {
  if [[ -n "$wavlm" && -n "$dasheng" ]]; then
    log "teachers: $wavlm and $dasheng"
    return
  fi
  log "no --wavlm or no --dasheng: small RANDOM networks in the official formats stand in."
  log "They show that everything works; models for use need the real teachers."
  run "$SPEAR_PYTHON" "$SPEAR_ROOT/local/make_teachers.py" --output-dir "$exp/teachers"
}

# Stage 1
prepare_corpora() {
  local options=()
  if [[ -n "$speech_dir" ]]; then
    options=(--source_dir "$speech_dir" --corpus speech --domain speech)
    [[ -z "$text" ]] || options+=(--text "$text")
    [[ -z "$utt2spk" ]] || options+=(--utt2spk "$utt2spk")
    [[ -z "$test_ids" ]] || options+=(--test_ids "$test_ids")
    [[ -z "$valid_ids" ]] || options+=(--valid_ids "$valid_ids" --valid_fraction 0)
    [[ -z "$join" ]] || options+=(--join "$join")
    prepare_corpus speech "${options[@]}"
  fi
  if [[ -n "$audio_dir" ]]; then
    prepare_corpus audio --source_dir "$audio_dir" --corpus audio --domain audio
  fi
}

prepare_corpus() {
  local name="$1" configs
  shift
  config_options prepare
  launch "$exp/log/prepare_$name.log" prepare ${configs[@]+"${configs[@]}"} "$@" \
    --output_dir "$data/manifests" --num_jobs "$num_jobs"
}

# Stage 2
make_shards() {
  local folder name configs
  config_options shard
  for folder in "${all_shards[@]}"; do
    name="$(basename -- "$folder")"
    launch "$exp/log/shard_$name.log" shard ${configs[@]+"${configs[@]}"} \
      --cuts "$data/manifests/${name}_cuts.jsonl.gz" --output_dir "$folder" --num_jobs "$num_jobs"
  done
}

# for_teachers FUNCTION: calls it with every teacher's name, side by side if --num-jobs allows.
for_teachers() {
  side_by_side "$num_jobs" "$1" "${teachers[@]}"
}

# Stage 3. The speech teacher's sample is of speech, the audio teacher's of everything.
embed_frames() {
  local name="$1" teacher configs shards=()
  config_options embed
  teacher_options "$name"
  [[ -z "$speech_dir" ]] || shards+=("$data/speech_train")
  [[ "$name" == "$SPEECH_TEACHER" ]] || shards+=("$data/audio_train")
  launch "$exp/log/embed_$name.log" embed ${configs[@]+"${configs[@]}"} "${teacher[@]}" \
    --shards "$(json_list "${shards[@]}")" --output "$exp/frames/$name"
}

# Stage 4
train_quantizer() {
  local name="$1" configs
  config_options train-quantizer
  launch "$exp/log/train_quantizer_$name.log" train-quantizer ${configs[@]+"${configs[@]}"} \
    --frames "$exp/frames/$name" --num_codebooks "$(codebooks_of "$name")" \
    --output "$exp/quantizers/$name/quantizer.safetensors" --device "$device"
}

# Stage 5. One pass over the audio for all teachers; jobs share the shards of each folder.
extract_tokens() {
  local configs
  config_options extract-tokens
  launch_jobs "$num_jobs" "$exp/log/extract_tokens.THIS_JOB.log" extract-tokens \
    ${configs[@]+"${configs[@]}"} --shards "$(json_list "${all_shards[@]}")" \
    --teachers "$(json_teachers)" --device "$device" --job THIS_JOB --num_jobs "$num_jobs"
}

# json_teachers: the teachers of extraction, with their quantisers and the folders that get tokens.
json_teachers() {
  local name line="" teacher shards
  for name in "${teachers[@]}"; do
    teacher_options "$name"
    teacher_shards "$name"
    line+=", \"$name\": {\"teacher\": $(json_fields "${teacher[@]}"),"
    line+=" \"quantizer\": $(json_string "$exp/quantizers/$name/quantizer.safetensors"),"
    line+=" \"shards\": $(json_list "${shards[@]}")}"
  done
  printf '{%s}' "${line#, }"
}

# json_fields [--teacher.FIELD VALUE]...: the fields of a teacher; other options are left out.
json_fields() {
  local line=""
  while (($# > 0)); do
    case "$1" in
      --teacher.layer) line+=", \"layer\": $2" ;;
      --teacher.*) line+=", \"${1#--teacher.}\": $(json_string "$2")" ;;
    esac
    shift 2
  done
  printf '{%s}' "${line#, }"
}

# Stage 6
verify_shards() {
  if [[ -n "$speech_dir" ]]; then
    verify_domain speech "$(json_list "${speech_shards[@]}")" "$SPEECH_TEACHER"
  fi
  if [[ -n "$audio_dir" ]]; then
    verify_domain audio "$(json_list "${audio_shards[@]}")" "${teachers[@]}"
  fi
}

# verify_domain DOMAIN SHARDS TEACHER...: the tokens must come from exactly these quantisers.
verify_domain() {
  local domain="$1" shards="$2" name quantizers=""
  shift 2
  for name in "$@"; do
    quantizers+=", \"$name\": $(json_string "$exp/quantizers/$name/quantizer.safetensors")"
  done
  launch "$exp/log/verify_$domain.log" verify --shards "$shards" --teachers "$(json_list "$@")" \
    --quantizers "{${quantizers#, }}" --recheck "$recheck" --device "$device"
}

# Stage 7
pretrain() {
  local configs data_folders=() valid_folders=() options=()
  config_options pretrain
  if [[ -n "$speech_dir" ]]; then
    data_folders+=("$data/speech_train")
    valid_folders+=("$data/speech_valid")
  fi
  if [[ -n "$audio_dir" ]]; then
    data_folders+=("$data/audio_train")
    valid_folders+=("$data/audio_valid")
  fi
  [[ -z "$max_steps" ]] || options+=(--train.max_steps "$max_steps")
  launch_training "$exp/log/pretrain.log" pretrain "${configs[@]}" \
    --data "$(json_sources "${data_folders[@]}")" \
    --valid "$(json_sources "${valid_folders[@]}")" --teachers "$(json_targets)" \
    --train.output_dir "$exp/pretrain" --train.device "$device" ${options[@]+"${options[@]}"}
}

# json_targets: what the student predicts, by teacher.
json_targets() {
  local name line="" role rate
  for name in "${teachers[@]}"; do
    role=audio rate=25.0
    if [[ "$name" == "$SPEECH_TEACHER" ]]; then role=speech rate=50.0; fi
    line+=", \"$name\": {\"role\": \"$role\", \"num_codebooks\": $(codebooks_of "$name"),"
    line+=" \"frame_rate_hz\": $rate,"
    line+=" \"quantizer\": $(json_string "$exp/quantizers/$name/quantizer.safetensors")}"
  done
  printf '{%s}' "${line#, }"
}

# Stage 8
export_model() {
  local configs
  config_options export
  launch "$exp/log/export.log" export ${configs[@]+"${configs[@]}"} \
    --run_dir "$exp/pretrain" --output_dir "$exp/model"
}

# has_transcripts: whether there is anything to train and score a recogniser on.
has_transcripts() {
  if [[ -n "$speech_dir" && -n "$text" ]]; then return; fi
  log "skipped: no --text (with --speech-dir), so there are no transcripts for ASR"
  return 1
}

# Stages 9 and 10. finetune NAME FIELD: FIELD is init (with the export's weights) or init_config
# (its architecture alone); everything else is the same, the number of steps too.
finetune() {
  local name="$1" field="$2" configs options=()
  if ! has_transcripts; then return; fi
  config_options finetune-asr
  [[ -z "$asr_max_steps" ]] || options+=(--train.max_steps "$asr_max_steps")
  launch_training "$exp/log/finetune_asr_$name.log" finetune-asr "${configs[@]}" \
    --data.train "$(json_list "$data/speech_train")" \
    --data.valid "$(json_list "$data/speech_valid")" "--$field" "$exp/model" \
    --train.output_dir "$exp/asr_$name" --train.device "$device" ${options[@]+"${options[@]}"}
}

# Stage 11. Without a test set the validation set is scored; it has chosen nothing.
decode_both() {
  local name configs split="$data/speech_test"
  if ! has_transcripts; then return; fi
  config_options decode
  if [[ -z "$test_ids" ]]; then
    log "no --test-ids: the validation recordings are scored instead"
    split="$data/speech_valid"
  fi
  for name in finetuned scratch; do
    launch "$exp/log/decode_$name.log" decode ${configs[@]+"${configs[@]}"} \
      --run_dir "$exp/asr_$name" --shards "$(json_list "$split")" --device "$device"
  done
}

# Stage 12
summarize() {
  run "$SPEAR_PYTHON" "$SPEAR_ROOT/local/summarize.py" --exp-dir "$exp"
  launch "$exp/log/report.log" report "$exp"
}
