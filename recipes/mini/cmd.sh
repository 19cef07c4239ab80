# How commands are run: a launcher that takes `[JOB=1:4] LOG -- COMMAND...`. The one here runs on
# this machine; a site with a queue names its own.
# shellcheck shell=bash disable=SC2034
train_cmd=("$SPEAR_ROOT/local/launch.sh")
