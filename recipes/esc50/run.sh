#!/usr/bin/env bash
# Tagging by cross-validation: ESC-50 with its own five folds, or any folder of recordings whose
# class is the beginning of their name (`dog_3.wav`), with stratified ones. Every fold is tagged by a
# model that was fine-tuned on the others, from the pre-trained encoder and, to compare, from the
# same architecture with fresh weights.
#
#   recipes/esc50/run.sh --init MODEL --esc50-dir DIR
#   recipes/esc50/run.sh --init MODEL --prefix-dir DIR --conf-dir recipes/esc50/conf/sounds
#
# Ends with mean and spread over folds and a table of all classes, in exp/folds.md. Run again, it
# does only what is missing.

set -euo pipefail
RECIPE_DIR="$(cd -- "$(dirname -- "$0")" && pwd)"
ROOT="$(dirname -- "$(dirname -- "$RECIPE_DIR")")"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"
# shellcheck source=local/stages.sh
. "$ROOT/local/stages.sh"  # for config_options and json_list

# Options.
stage=0               # first stage to run
stop_stage=4          # last stage to run
output_dir=""         # folder for data/ and exp/; the recipe's own where empty
conf_dir=""           # folder of your own YAML files, laid over the recipe's
esc50_dir=""          # folder of ESC-50, with audio/ and meta/
prefix_dir=""         # folder of recordings called {class}_{rest}, instead
min_clips=8           # recordings that a class of --prefix-dir needs
num_folds=5           # folds
init=""               # pre-trained encoder: export folder or hub id
scratch=true          # whether the same architecture is trained from fresh weights, too
nproc=1               # training processes; above 1 they run under torchrun
num_jobs=2            # jobs of the other stages that run in parallel
max_steps=""          # steps of each training; as in the configuration where empty
device=auto           # auto, cpu or cuda
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"

for option in stage stop_stage min_clips num_folds nproc num_jobs; do
  [[ "${!option}" =~ ^[0-9]+$ ]] || die "--${option//_/-} is a number, not '${!option}'"
done
[[ -n "$esc50_dir" || -n "$prefix_dir" ]] || die "give --esc50-dir or --prefix-dir"
[[ -z "$esc50_dir" || -z "$prefix_dir" ]] || die "give --esc50-dir or --prefix-dir, not both"
[[ -n "$init" ]] || die "--init is needed: an export folder or hub id"

# shellcheck source=recipes/esc50/path.sh
. "$RECIPE_DIR/path.sh"
# shellcheck source=recipes/esc50/cmd.sh
. "$RECIPE_DIR/cmd.sh"
# shellcheck disable=SC2034  # read by config_options
conf_dirs=("$RECIPE_DIR/conf")
output_dir="$(absolute "${output_dir:-$RECIPE_DIR}")"
data="$output_dir/data"
exp="$output_dir/exp"
audio_dir="${prefix_dir:-$esc50_dir/audio}"

write_labels() {
  if [[ -n "$esc50_dir" ]]; then
    run "$SPEAR_PYTHON" "$RECIPE_DIR/local/esc50_labels.py" --esc50-dir "$esc50_dir" \
      --output-dir "$data/lists"
  else
    run "$SPEAR_PYTHON" "$RECIPE_DIR/local/prefix_labels.py" --audio-dir "$prefix_dir" \
      --min-clips "$min_clips" --num-folds "$num_folds" --output-dir "$data/lists"
  fi
}

prepare_and_shard() {
  launch "$exp/log/prepare.log" prepare --source_dir "$audio_dir" --corpus sounds --domain audio \
    --output_dir "$data/manifests" --num_jobs "$num_jobs"
  launch "$exp/log/shard.log" shard --cuts "$data/manifests/sounds_train_cuts.jsonl.gz" \
    --output_dir "$data/sounds" --min_duration_s 0.01 --num_jobs "$num_jobs"
}

# train_folds NAME FIELD: FIELD is init (with the encoder's weights) or init_config (its architecture
# alone); everything else is the same, the number of steps too.
train_folds() {
  local name="$1" field="$2" fold configs options=()
  config_options finetune-tagging
  [[ -z "$max_steps" ]] || options+=(--train.max_steps "$max_steps")
  for ((fold = 1; fold <= num_folds; fold++)); do
    if [[ -f "$exp/$name/fold$fold/evaluation/summary.json" ]]; then continue; fi
    launch_training "$exp/log/${name}_fold$fold.log" finetune-tagging "${configs[@]}" \
      --data.train "$(json_list "$data/sounds")" --data.valid "$(json_list "$data/sounds")" \
      --data.labels "$(json_list "$data/lists/utt2labels")" --data.classes "$data/lists/classes" \
      --data.train_ids "$data/lists/fold$fold/train_ids" \
      --data.valid_ids "$data/lists/fold$fold/valid_ids" "--$field" "$init" \
      --train.output_dir "$exp/$name/fold$fold" --train.device "$device" \
      ${options[@]+"${options[@]}"}
  done
}

if begin_stage 0 "lists of labels and folds"; then write_labels; fi
if begin_stage 1 "manifests and shards"; then prepare_and_shard; fi
if begin_stage 2 "taggers from the pre-trained encoder"; then train_folds finetuned init; fi
if [[ "$scratch" == true ]] && begin_stage 3 "taggers from scratch"; then
  train_folds scratch init_config
fi
if begin_stage 4 "summary"; then
  run "$SPEAR_PYTHON" "$SPEAR_ROOT/local/summarize.py" --folds --exp-dir "$exp"
fi
