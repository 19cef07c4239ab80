#!/usr/bin/env bash
# ASR on LibriSpeech: a pre-trained encoder fine-tuned on 100 or 960 hours, beside the same encoder
# trained from scratch by the same command with the same budget.
#
#   recipes/librispeech/run.sh --librispeech-dir DIR/LibriSpeech --init exp/model
#   recipes/librispeech/run.sh --librispeech-dir DIR/LibriSpeech --hours 960 --init exp/model --nproc 2
#
# The folder holds train-clean-100, dev-clean, test-clean and so on as the archives unpack. Without
# --init there is only the training from scratch. Run again, it does only what is missing.

set -euo pipefail
RECIPE_DIR="$(cd -- "$(dirname -- "$0")" && pwd)"
ROOT="$(dirname -- "$(dirname -- "$RECIPE_DIR")")"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"
# shellcheck source=local/stages.sh
. "$ROOT/local/stages.sh"

librispeech_dir=""    # folder that holds the subsets
hours=100             # 100 (train-clean-100) or 960 (all three training subsets)
init=""               # export folder or hub id of the pre-trained encoder
scratch=true          # whether to train the baseline, from scratch
noise_dir=""          # folder of noise (MUSAN, say), laid under half of the training clips
stage=0               # first stage to run
stop_stage=6          # last stage to run
output_dir=""         # folder for data/ and exp/; the recipe's own where empty
conf_dir=""           # folder of your own YAML files (finetune-asr.yaml, ...), laid over the recipe's
nproc=1               # training processes; above 1 they run under torchrun
num_jobs=2            # jobs of the other stages that run in parallel
max_steps=""          # steps of each training; as in the configuration where empty
device=auto           # auto, cpu or cuda
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"

readonly TEST_SUBSETS=(dev-clean dev-other test-clean test-other)
readonly NOISE=noise

main() {
  check_recipe_options
  output_dir="$(absolute "${output_dir:-$RECIPE_DIR}")"
  # shellcheck source=recipes/librispeech/path.sh
  . "$RECIPE_DIR/path.sh"
  # shellcheck source=recipes/librispeech/cmd.sh
  . "$RECIPE_DIR/cmd.sh"
  data="$output_dir/data"
  exp="$output_dir/exp/${hours}h"
  take_lock 8 "$exp/.lock" "$SPEAR_PYTHON" "works in $exp"
  if begin_stage 0 "transcripts and speakers"; then make_lists; fi
  if begin_stage 1 "cut manifests"; then prepare_subsets; fi
  if begin_stage 2 "shards"; then shard_subsets; fi
  if begin_stage 3 "ASR from the pre-trained encoder"; then train_finetuned; fi
  if begin_stage 4 "ASR from scratch"; then train_scratch; fi
  if begin_stage 5 "decoding"; then decode_runs; fi
  if begin_stage 6 "summary"; then summarize; fi
}

# What can be refused before anything is set up or started.
check_recipe_options() {
  local name
  for name in stage stop_stage; do
    [[ "${!name}" =~ ^[0-9]+$ ]] || die "--${name//_/-} is a stage's number, not '${!name}'"
  done
  for name in nproc num_jobs; do
    [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || die "--${name//_/-} is 1 or more, not '${!name}'"
  done
  [[ -n "$librispeech_dir" ]] || die "give --librispeech-dir, the folder that holds train-clean-100"
  [[ -d "$librispeech_dir" ]] || die "--librispeech-dir $librispeech_dir: no such folder"
  [[ -z "$noise_dir" || -d "$noise_dir" ]] || die "--noise-dir $noise_dir: no such folder"
  [[ -z "$conf_dir" || -d "$conf_dir" ]] || die "--conf-dir $conf_dir: no such folder"
  [[ -n "$init" || "$scratch" == true ]] || die "give --init, or leave --scratch true"
  conf_dirs=("$RECIPE_DIR/conf")
  train_subsets=(train-clean-100)
  case "$hours" in
    100) ;;
    960)
      conf_dirs+=("$RECIPE_DIR/conf/960h")
      train_subsets+=(train-clean-360 train-other-500)
      ;;
    *) die "--hours is 100 or 960, not '$hours'" ;;
  esac
  subsets=("${train_subsets[@]}" "${TEST_SUBSETS[@]}")
}

# Stage 0
make_lists() {
  run "$SPEAR_PYTHON" "$RECIPE_DIR/local/lists.py" --librispeech-dir "$librispeech_dir" \
    --output-dir "$data/lists" "${subsets[@]}"
}

# Stage 1
prepare_subsets() {
  local subset
  for subset in "${subsets[@]}"; do
    launch "$output_dir/exp/log/prepare_$subset.log" prepare \
      --source_dir "$librispeech_dir/$subset" --corpus "$subset" --train_split all \
      --text "$data/lists/$subset/text" --utt2spk "$data/lists/$subset/utt2spk" \
      --output_dir "$data/manifests" --num_jobs "$num_jobs"
  done
  [[ -n "$noise_dir" ]] || return 0
  launch "$output_dir/exp/log/prepare_$NOISE.log" prepare --source_dir "$noise_dir" \
    --corpus "$NOISE" --train_split all --domain audio \
    --output_dir "$data/manifests" --num_jobs "$num_jobs"
}

# Stage 2
shard_subsets() {
  local name configs
  config_options shard
  for name in "${subsets[@]}" ${noise_dir:+"$NOISE"}; do
    launch "$output_dir/exp/log/shard_$name.log" shard ${configs[@]+"${configs[@]}"} \
      --cuts "$data/manifests/${name}_all_cuts.jsonl.gz" --output_dir "$data/$name" \
      --num_jobs "$num_jobs"
  done
}

# Stage 3
train_finetuned() {
  if [[ -z "$init" ]]; then
    log "skipped: no --init"
    return
  fi
  train_asr finetuned --init "$init"
}

# Stage 4. The architecture is that of --init where there is one, else that of the configuration.
train_scratch() {
  if [[ "$scratch" == false ]]; then
    log "skipped: --scratch false"
    return
  fi
  train_asr scratch ${init:+--init_config "$init"}
}

# train_asr NAME OPTION...: the same budget and data for both.
train_asr() {
  local name="$1" configs subset folders=() options=()
  shift
  config_options finetune-asr
  for subset in "${train_subsets[@]}"; do folders+=("$data/$subset"); done
  [[ -z "$max_steps" ]] || options+=(--train.max_steps "$max_steps")
  [[ -z "$noise_dir" ]] || options+=(--data.noise.shards "$(json_list "$data/$NOISE")")
  launch_training "$exp/log/finetune_asr_$name.log" finetune-asr "${configs[@]}" \
    --data.train "$(json_list "${folders[@]}")" \
    --data.valid "$(json_list "$data/dev-clean" "$data/dev-other")" "$@" \
    --train.output_dir "$exp/asr_$name" --train.device "$device" ${options[@]+"${options[@]}"}
}

# Stage 5
decode_runs() {
  local name configs subset folders=()
  config_options decode
  for subset in "${TEST_SUBSETS[@]}"; do folders+=("$data/$subset"); done
  for name in finetuned scratch; do
    [[ -d "$exp/asr_$name" ]] || continue
    launch "$exp/log/decode_$name.log" decode ${configs[@]+"${configs[@]}"} \
      --run_dir "$exp/asr_$name" --shards "$(json_list "${folders[@]}")" --device "$device"
  done
}

main
