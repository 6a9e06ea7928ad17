#!/bin/bash
# Eight workers of one study, each with its own GPU:  sbatch deploy/slurm-array.sh studies/quickstart.toml
#
# Before: export HPO_STORAGE=postgresql://hpo@db.example:5432/hpo
#         export HPO_STORAGE_PASSWORD_FILE=$HOME/.hpo-password     (readable only by you)
#         export HPO_ARTIFACTS=/shared/$USER/hpo-artifacts         (a folder that all nodes share)
#SBATCH --job-name=hpo
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

study=${1:?usage: sbatch deploy/slurm-array.sh STUDY}
: "${HPO_STORAGE:?set HPO_STORAGE to the URL of a Postgres that every node reaches}"
: "${HPO_ARTIFACTS:?set HPO_ARTIFACTS to a folder that every node sees, or to s3://BUCKET/PREFIX}"

# Two minutes before the time limit Slurm sends SIGTERM to this process, which `exec` replaces by the supervisor: the
# worker finishes its epoch, saves a checkpoint and releases the trial.
exec hpo worker "$study" --slots auto
