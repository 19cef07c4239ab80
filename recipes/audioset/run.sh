#!/usr/bin/env bash
# Audio tagging on AudioSet, fine-tuned from a pre-trained encoder: label lists, shards, training,
# mAP and a table of all classes.
#
#   recipes/audioset/run.sh --init MODEL --csv-dir DIR --balanced-dir DIR --eval-dir DIR
#   recipes/audioset/run.sh --subset 2m --init MODEL --csv-dir DIR --balanced-dir DIR \
#       --unbalanced-dir DIR --eval-dir DIR --nproc 8
#
# AudioSet is links to videos; the recordings are yours to get. The folders hold them in any format
# that libsndfile reads, one file for each segment. Run again, it does only what is missing.

set -euo pipefail
RECIPE_DIR="$(cd -- "$(dirname -- "$0")" && pwd)"
ROOT="$(dirname -- "$(dirname -- "$RECIPE_DIR")")"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"
# shellcheck source=local/stages.sh
. "$ROOT/local/stages.sh"  # for config_options and json_list

# Options.
stage=0               # first stage to run
stop_stage=3          # last stage to run
output_dir=""         # folder for data/ and exp/; the recipe's own where empty
conf_dir=""           # folder of your own YAML files, laid over the recipe's
subset=20k            # 20k: the balanced part; 2m: both training parts
csv_dir=""            # folder of class_labels_indices.csv and the three *_segments.csv
balanced_dir=""       # recordings of balanced_train_segments.csv
unbalanced_dir=""     # recordings of unbalanced_train_segments.csv; for --subset 2m
eval_dir=""           # recordings of eval_segments.csv
name_format="{ytid}"  # names of the files without suffix, with {ytid}, {start}, {end}
init=""               # pre-trained encoder: export folder or hub id
nproc=1               # training processes; above 1 they run under torchrun
num_jobs=4            # jobs of the other stages that run in parallel
max_steps=""          # training steps; as in the configuration where empty
device=auto           # auto, cpu or cuda
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"

for option in stage stop_stage nproc num_jobs; do
  [[ "${!option}" =~ ^[0-9]+$ ]] || die "--${option//_/-} is a number, not '${!option}'"
done
for option in csv_dir balanced_dir eval_dir init; do
  [[ -n "${!option}" ]] || die "--${option//_/-} is needed; --help says what it is"
done
[[ "$subset" == 20k || "$subset" == 2m ]] || die "--subset is 20k or 2m, not '$subset'"
[[ "$subset" == 20k || -n "$unbalanced_dir" ]] || die "--subset 2m needs --unbalanced-dir"

# shellcheck source=recipes/audioset/path.sh
. "$RECIPE_DIR/path.sh"
# shellcheck source=recipes/audioset/cmd.sh
. "$RECIPE_DIR/cmd.sh"
# shellcheck disable=SC2034  # read by config_options
conf_dirs=("$RECIPE_DIR/conf")
output_dir="$(absolute "${output_dir:-$RECIPE_DIR}")"
data="$output_dir/data"
exp="$output_dir/exp"
parts=(balanced eval)
if [[ "$subset" == 2m ]]; then parts=(balanced unbalanced eval); fi

# segments_of PART: the name of its CSV; dir_of PART: its folder of recordings.
segments_of() {
  if [[ "$1" == eval ]]; then printf eval_segments.csv; else printf '%s_train_segments.csv' "$1"; fi
}
dir_of() {
  case "$1" in
    balanced) printf '%s' "$balanced_dir" ;;
    unbalanced) printf '%s' "$unbalanced_dir" ;;
    eval) printf '%s' "$eval_dir" ;;
  esac
}

write_labels() {
  local part
  for part in "${parts[@]}"; do
    run "$SPEAR_PYTHON" "$RECIPE_DIR/local/audioset_labels.py" --audio-dir "$(dir_of "$part")" \
      --segments "$csv_dir/$(segments_of "$part")" --name-format "$name_format" \
      --classes "$csv_dir/class_labels_indices.csv" --output-dir "$data/lists/$part"
  done
}

prepare_parts() {
  local part
  for part in "${parts[@]}"; do
    launch "$exp/log/prepare_$part.log" prepare --source_dir "$(dir_of "$part")" \
      --corpus audioset --train_split "$part" --domain audio \
      --output_dir "$data/manifests/$part" --num_jobs "$num_jobs"
  done
}

shard_parts() {
  local part
  for part in "${parts[@]}"; do
    launch "$exp/log/shard_$part.log" shard --output_dir "$data/$part" --num_jobs "$num_jobs" \
      --cuts "$data/manifests/$part/audioset_${part}_cuts.jsonl.gz"
  done
}

finetune_tagger() {
  local part configs train=() labels=() options=()
  for part in "${parts[@]}"; do
    labels+=("$data/lists/$part/utt2labels")
    [[ "$part" == eval ]] || train+=("$data/$part")
  done
  config_options "finetune-tagging-$subset"
  [[ -z "$max_steps" ]] || options+=(--train.max_steps "$max_steps")
  launch_training "$exp/log/finetune_tagging_$subset.log" finetune-tagging "${configs[@]}" \
    --data.train "$(json_list "${train[@]}")" --data.valid "$(json_list "$data/eval")" \
    --data.labels "$(json_list "${labels[@]}")" --data.classes "$data/lists/eval/classes" \
    --data.skip_unlabelled true --init "$init" --train.output_dir "$exp/tagging_$subset" \
    --train.device "$device" ${options[@]+"${options[@]}"}
}

if begin_stage 0 "lists of labels"; then write_labels; fi
if begin_stage 1 "cut manifests"; then prepare_parts; fi
if begin_stage 2 "shards"; then shard_parts; fi
if begin_stage 3 "fine-tuning and evaluation"; then finetune_tagger; fi
log "results in $exp/tagging_$subset/evaluation/report.md"
