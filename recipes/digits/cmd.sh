# How commands are run: a launcher that takes Kaldi's arguments, `[OPTIONS] [JOB=1:4] LOG COMMAND`.
# The first one runs on this machine. On a cluster with Slurm take the second, with what a job needs;
# --config names a file that says what the options mean to sbatch there (see local/slurm.sh).
# Kaldi's run.pl, slurm.pl and queue.pl do as well.
# shellcheck shell=bash disable=SC2034
train_cmd=("$SPEAR_ROOT/local/launch.sh")
# train_cmd=("$SPEAR_ROOT/local/slurm.sh" --mem 16G --num-threads 4 --gpu 1 --max-jobs-run 32)
