#!/usr/bin/env bash
# The whole job on the corpus that comes with the recipe, on a CPU, in minutes: 17.6 minutes of
# spoken digit strings and 5.9 minutes of sound events, both synthetic. Nothing is downloaded.
#
#   recipes/mini/run.sh
#   recipes/mini/run.sh --stage 7 --nproc 2
#
# Without --wavlm and --dasheng small random networks are the teachers. Ends with a table of
# quantiser errors, masked accuracies and word error rates. Run again, it does only what is missing.

set -euo pipefail
RECIPE_DIR="$(cd -- "$(dirname -- "$0")" && pwd)"
ROOT="$(dirname -- "$(dirname -- "$RECIPE_DIR")")"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"
# shellcheck source=local/stages.sh
. "$ROOT/local/stages.sh"
# shellcheck disable=SC2034  # read by parse_options.sh
OPTION_FILES=("$ROOT/local/stages.sh")
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"

# shellcheck disable=SC2034  # the inputs, read by stages.sh
{
  speech_dir="$RECIPE_DIR/corpus/speech"
  text="$speech_dir/text"
  utt2spk="$speech_dir/utt2spk"
  test_ids="$speech_dir/test_ids"
  valid_ids="$speech_dir/valid_ids"
  join=""
  audio_dir="$RECIPE_DIR/corpus/audio"
  conf_dirs=("$RECIPE_DIR/conf")
}
output_dir="${output_dir:-$RECIPE_DIR}"
check_options
# shellcheck source=recipes/mini/path.sh
. "$RECIPE_DIR/path.sh"
# shellcheck source=recipes/mini/cmd.sh
. "$RECIPE_DIR/cmd.sh"
run_stages
