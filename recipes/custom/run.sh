#!/usr/bin/env bash
# The whole job on your own folders of recordings: teachers' tokens, a student pre-trained on them,
# its export, and, where there are transcripts, an ASR model fine-tuned from it beside one trained
# from scratch with the same budget.
#
#   recipes/custom/run.sh --speech-dir DIR --text FILE --test-ids FILE --audio-dir DIR
#
# Recordings may be of any format that libsndfile reads and of any rate. The files are Kaldi's: the
# id of a recording is its path below the folder without suffix, with '-' for '/'. Without --text
# the job ends with the exported encoder. Run again, it does only what is missing.

set -euo pipefail
RECIPE_DIR="$(cd -- "$(dirname -- "$0")" && pwd)"
ROOT="$(dirname -- "$(dirname -- "$RECIPE_DIR")")"
# shellcheck source=local/common.sh
. "$ROOT/local/common.sh"
# shellcheck source=local/stages.sh
. "$ROOT/local/stages.sh"
# shellcheck disable=SC2034  # read by parse_options.sh
OPTION_FILES=("$ROOT/local/stages.sh")

# The inputs.
speech_dir=""         # folder of speech
text=""               # transcripts, 'id word word ...' (optional)
utt2spk=""            # speakers, 'id speaker' (optional; --join needs it)
test_ids=""           # ids of the test set (optional)
valid_ids=""          # ids of the validation set; a tenth of the rest where empty
join=""               # a range such as 3-6: joins so many recordings of a speaker into one
audio_dir=""          # folder of general audio
# shellcheck source=local/parse_options.sh
. "$ROOT/local/parse_options.sh"

# shellcheck disable=SC2034  # read by stages.sh; the later folder overlays the earlier
conf_dirs=("$ROOT/recipes/mini/conf" "$RECIPE_DIR/conf")
output_dir="${output_dir:-$RECIPE_DIR}"
check_options
# shellcheck source=recipes/custom/path.sh
. "$RECIPE_DIR/path.sh"
# shellcheck source=recipes/custom/cmd.sh
. "$RECIPE_DIR/cmd.sh"
run_stages
