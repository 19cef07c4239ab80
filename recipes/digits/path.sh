# The environment of the recipe: SPEAR_ROOT, SPEAR_PYTHON and PATH; set up on the first call.
# shellcheck shell=bash
# shellcheck source=local/setup_env.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../../local/setup_env.sh"
