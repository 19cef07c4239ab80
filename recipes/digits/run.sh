#!/usr/bin/env bash
# Little transcribed speech: what pre-training saves. An encoder is pre-trained on spoken digits
# without their transcripts, then fine-tuned with ten minutes, two minutes and thirty seconds of
# transcribed speech, beside the same architecture from scratch with the same data and steps.
#
#   recipes/digits/run.sh --digits-dir DIR
#   recipes/digits/run.sh --digits-dir DIR --seconds "120" --seeds "0"
#
# DIR is the folder `recordings` of the Free Spoken Digit Dataset. One speaker is held out from
# everything as a second, harder test. The teacher is MFCC, so nothing is downloaded. Ends with a
# table of word error rates, exp/summary.md. Run again, it does only what is missing.

set -euo pipefail
RECIPE_DIR="$(cd -- "$(dirname -- "$0")" && pwd)"
ROOT="$(dirname -- "$(dirname -- "$RECIPE_DIR")")"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"
# shellcheck source=local/stages.sh
. "$ROOT/local/stages.sh"  # for config_options and json_list

# Options.
stage=0               # first stage to run
stop_stage=9          # last stage to run
output_dir=""         # folder for data/ and exp/; the recipe's own where empty
conf_dir=""           # folder of your own YAML files (pretrain.yaml, ...), laid over the recipe's
digits_dir=""         # folder of recordings called {digit}_{speaker}_{index}.wav
held_out_speaker=yweweler  # speaker who is heard in a test set only
seconds="600 120 30"  # amounts of transcribed speech
seeds="0 1 2"         # each draws other transcribed speech and starts from other weights
transducer_seconds=120  # amount with which transducers are trained beside CTC
codebooks=2           # tokens per frame of the teacher
recheck=3             # cuts whose tokens stage 4 extracts anew and compares
num_jobs=2            # jobs that run in parallel, recognisers too
max_steps=""          # steps of pre-training; as in the configuration where empty
asr_max_steps=""      # steps of each recogniser; as in the configuration where empty
device=auto           # auto, cpu or cuda
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"

readonly TEACHER=mfcc JOIN=3-6
readonly PRETRAIN_PASSES=4  # times that a recording comes into strings to pre-train on
nproc=1

main() {
  check_recipe_options
  output_dir="$(absolute "${output_dir:-$RECIPE_DIR}")"
  # shellcheck source=recipes/digits/path.sh
  . "$RECIPE_DIR/path.sh"
  # shellcheck source=recipes/digits/cmd.sh
  . "$RECIPE_DIR/cmd.sh"
  conf_dirs=("$RECIPE_DIR/conf")
  data="$output_dir/data"
  exp="$output_dir/exp"
  quantizer="$exp/quantizer/quantizer.safetensors"
  take_lock 8 "$exp/.lock" "$SPEAR_PYTHON" "works in $exp"
  if begin_stage 0 "transcripts, speakers and test sets"; then make_lists; fi
  if begin_stage 1 "cut manifests"; then make_manifests; fi
  if begin_stage 2 "shards"; then make_all_shards; fi
  if begin_stage 3 "the teacher's quantiser"; then make_quantizer; fi
  if begin_stage 4 "tokens"; then make_tokens; fi
  if begin_stage 5 "pre-training"; then pretrain_student; fi
  if begin_stage 6 "recognisers with CTC"; then side_by_side "$num_jobs" train_asr "${ctc_runs[@]}"; fi
  if begin_stage 7 "transducers"; then
    side_by_side "$num_jobs" train_asr ${transducer_runs[@]+"${transducer_runs[@]}"}
  fi
  if begin_stage 8 "decoding"; then
    side_by_side "$num_jobs" decode_run "${ctc_runs[@]}" \
      ${transducer_runs[@]+"${transducer_runs[@]}"}
  fi
  if begin_stage 9 "summary"; then
    run "$SPEAR_PYTHON" "$RECIPE_DIR/local/digits_table.py" --exp-dir "$exp"
  fi
}

# What can be refused before anything is set up or started; names the recognisers, too.
check_recipe_options() {
  local name amount seed
  for name in stage stop_stage recheck; do
    [[ "${!name}" =~ ^[0-9]+$ ]] || die "--${name//_/-} is a whole number, not '${!name}'"
  done
  for name in num_jobs codebooks transducer_seconds; do
    [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || die "--${name//_/-} is 1 or more, not '${!name}'"
  done
  [[ "$seconds" =~ ^[1-9][0-9]*(\ [1-9][0-9]*)*$ ]] || die "--seconds is like '600 120', not '$seconds'"
  [[ "$seeds" =~ ^[0-9]+(\ [0-9]+)*$ ]] || die "--seeds is like '0 1 2', not '$seeds'"
  [[ -n "$digits_dir" ]] || die "give --digits-dir, the folder of recordings"
  [[ -d "$digits_dir" ]] || die "--digits-dir $digits_dir: no such folder"
  [[ -z "$conf_dir" || -d "$conf_dir" ]] || die "--conf-dir $conf_dir: no such folder"
  subsets=() ctc_runs=() transducer_runs=()
  for amount in $seconds; do
    for seed in $seeds; do
      subsets+=("${amount}s-$seed")
      ctc_runs+=("ctc-finetuned-${amount}s-$seed" "ctc-scratch-${amount}s-$seed")
      if ((amount == transducer_seconds)); then
        transducer_runs+=("transducer-finetuned-${amount}s-$seed" "transducer-scratch-${amount}s-$seed")
      fi
    done
  done
}

# Stage 0
make_lists() {
  run "$SPEAR_PYTHON" "$RECIPE_DIR/local/digit_lists.py" --digits-dir "$digits_dir" \
    --held-out-speaker "$held_out_speaker" --output-dir "$data/lists"
}

# Stage 1. The same recordings twice: for pre-training joined in several ways, and once each for the
# sets of transcribed speech, so that two minutes are two minutes of different recordings.
make_manifests() {
  local amount seed
  prepare_strings unlabelled "$PRETRAIN_PASSES"
  prepare_strings labelled 1
  select_cuts labelled_test test --but-speakers "$held_out_speaker"
  select_cuts labelled_test test_speaker --speakers "$held_out_speaker"
  for amount in $seconds; do
    for seed in $seeds; do
      select_cuts labelled_train "${amount}s-$seed" --seconds "$amount" --seed "$seed"
    done
  done
}

# prepare_strings CORPUS PASSES
prepare_strings() {
  launch "$exp/log/prepare_$1.log" prepare --source_dir "$digits_dir" --corpus "$1" \
    --text "$data/lists/text" --utt2spk "$data/lists/utt2spk" \
    --test_ids "$data/lists/test_ids" --valid_ids "$data/lists/valid_ids" \
    --join "$JOIN" --join_passes "$2" --output_dir "$data/manifests" --num_jobs "$num_jobs"
}

# select_cuts FROM TO OPTION...
select_cuts() {
  local from="$1" to="$2"
  shift 2
  run "$SPEAR_PYTHON" "$RECIPE_DIR/local/select_cuts.py" \
    --cuts "$data/manifests/${from}_cuts.jsonl.gz" \
    --output "$data/manifests/${to}_cuts.jsonl.gz" "$@"
}

# Stage 2
make_all_shards() {
  local name
  for name in unlabelled_train labelled_valid test test_speaker "${subsets[@]}"; do
    launch "$exp/log/shard_$name.log" shard --cuts "$data/manifests/${name}_cuts.jsonl.gz" \
      --output_dir "$data/$name" --shard_size 50 --num_jobs "$num_jobs"
  done
}

# Stage 3
make_quantizer() {
  local configs
  config_options embed
  launch "$exp/log/embed.log" embed ${configs[@]+"${configs[@]}"} --teacher.name "$TEACHER" \
    --shards "$(json_list "$data/unlabelled_train")" --output "$exp/frames" --device "$device"
  config_options train-quantizer
  launch "$exp/log/train_quantizer.log" train-quantizer ${configs[@]+"${configs[@]}"} \
    --frames "$exp/frames" --num_codebooks "$codebooks" --output "$quantizer" --device "$device"
}

# Stage 4
make_tokens() {
  local shards configs
  shards="$(json_list "$data/unlabelled_train" "$data/labelled_valid")"
  config_options extract-tokens
  launch_jobs "$num_jobs" "$exp/log/extract_tokens.THIS_JOB.log" extract-tokens \
    ${configs[@]+"${configs[@]}"} --shards "$shards" \
    --teachers "{\"$TEACHER\": {\"teacher\": {\"name\": \"$TEACHER\"}, \"quantizer\": $(json_string "$quantizer")}}" \
    --device "$device" --job THIS_JOB --num_jobs "$num_jobs"
  launch "$exp/log/verify.log" verify --shards "$shards" --teachers "$(json_list "$TEACHER")" \
    --quantizers "{\"$TEACHER\": $(json_string "$quantizer")}" --recheck "$recheck" \
    --device "$device"
}

# Stage 5. The validation set is of no influence: it is looked at, and chooses nothing.
pretrain_student() {
  local configs options=() target
  config_options pretrain
  [[ -z "$max_steps" ]] || options+=(--train.max_steps "$max_steps")
  target="{\"role\": \"speech\", \"num_codebooks\": $codebooks, \"frame_rate_hz\": 50.0,"
  target+=" \"quantizer\": $(json_string "$quantizer")}"
  launch_training "$exp/log/pretrain.log" pretrain "${configs[@]}" \
    --data "[{\"path\": $(json_string "$data/unlabelled_train")}]" \
    --valid "[{\"path\": $(json_string "$data/labelled_valid")}]" \
    --teachers "{\"$TEACHER\": $target}" \
    --train.output_dir "$exp/pretrain" --train.device "$device" ${options[@]+"${options[@]}"}
  config_options export
  launch "$exp/log/export.log" export ${configs[@]+"${configs[@]}"} \
    --run_dir "$exp/pretrain" --output_dir "$exp/model"
}

# Stages 6 and 7. train_asr HEAD-START-AMOUNT-SEED: START is finetuned (with the pre-trained weights)
# or scratch (the architecture alone); everything else is the same.
train_asr() {
  local name="$1" head start amount seed configs field=init options=()
  IFS=- read -r head start amount seed <<<"$name"
  config_options finetune-asr
  if [[ "$start" == scratch ]]; then field=init_config; fi
  [[ -z "$asr_max_steps" ]] || options+=(--train.max_steps "$asr_max_steps")
  launch_training "$exp/log/asr_$name.log" finetune-asr "${configs[@]}" --head "$head" \
    --data.train "$(json_list "$data/$amount-$seed")" \
    --data.valid "$(json_list "$data/labelled_valid")" "--$field" "$exp/model" \
    --train.output_dir "$exp/asr/$name" --train.seed "$seed" --train.device "$device" \
    ${options[@]+"${options[@]}"}
}

# Stage 8. Greedily and with a beam; transducers also by their CTC head.
decode_run() {
  local name="$1" method
  for method in greedy beam; do
    decode_as "$name" "$method" --search.method "$method"
  done
  if [[ "$name" == transducer-* ]]; then
    decode_as "$name" ctc_head --search.head ctc
  fi
}

# decode_as RUN NAME OPTION...
decode_as() {
  local name="$1" folder="$2" configs
  shift 2
  config_options decode
  launch "$exp/log/decode_${name}_$folder.log" decode ${configs[@]+"${configs[@]}"} \
    --run_dir "$exp/asr/$name" --output_dir "$exp/asr/$name/decode/$folder" \
    --shards "$(json_list "$data/test" "$data/test_speaker")" --device "$device" "$@"
}

main
