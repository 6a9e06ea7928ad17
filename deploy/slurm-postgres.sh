#!/bin/bash
# A study on several nodes, with a Postgres of its own:  sbatch deploy/slurm-postgres.sh studies/quickstart.toml
#
# For clusters without a Postgres that every node reaches. The first node of the job runs one; workers on all nodes use
# it. Activate the environment in which `hpo` is installed before you submit. Submit again to go on: database, password
# and checkpoints are kept in $HPO_FOLDER, a folder that all nodes share (default: .hpo-slurm of the current one).
# While the job runs:  . .hpo-slurm/environment && hpo status studies/quickstart.toml
#SBATCH --job-name=hpo-postgres
#SBATCH --dependency=singleton
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
set -euo pipefail
umask 077

study=${1:?usage: sbatch deploy/slurm-postgres.sh STUDY}
folder=${HPO_FOLDER:-$PWD/.hpo-slurm}
data=$folder/pg
mkdir -p "$folder"

# Two servers on one folder would destroy the database. The lock is this job's until its last process has ended.
exec 9>"$folder/lock"
flock --nonblock 9 || { echo "another job uses $folder; wait for it, or set HPO_FOLDER" >&2; exit 1; }

# The binaries that come with hpo, unless $HPO_POSTGRES_BIN names others (initdb and pg_ctl are in it).
bin=${HPO_POSTGRES_BIN:-$(python -c 'from sparse_evidence.hpo.database.embedded import binaries; print(binaries())')}
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

if [ ! -d "$data" ]; then
  rm -rf "$data.new"
  python -c 'import secrets; print(secrets.token_hex(24))' >"$folder/password"
  "$bin/initdb" -D "$data.new" --username=hpo --pwfile="$folder/password" --auth=scram-sha-256 \
    --encoding=UTF8 --locale=C --no-instructions >"$folder/initdb.log"
  # From every node, but only with the password. The traffic is not encrypted: values and parameters, no text.
  echo "host all hpo all scram-sha-256" >>"$data.new/pg_hba.conf"
  mv "$data.new" "$data"
fi
"$bin/pg_ctl" start -w -s -D "$data" -l "$folder/server.log" \
  -o "-h '*' -p $port -N 200 -c unix_socket_directories=''" || { tail "$folder/server.log" >&2; exit 3; }
trap '"$bin/pg_ctl" stop -w -s -m fast -D "$data"' EXIT

cat >"$folder/environment" <<END
export HPO_STORAGE='postgresql://hpo@$(hostname):$port/postgres'
export HPO_STORAGE_PASSWORD_FILE='$folder/password' HPO_ARTIFACTS='$folder/artifacts'
END
. "$folder/environment"

# Three minutes before the time limit Slurm sends SIGTERM to this process, which passes it on: workers finish their
# epoch, save a checkpoint and release their trials. A signal interrupts `wait`, so it is called until they have ended.
srun hpo worker "$study" --slots auto 9>&- &
workers=$!
stopped=
trap 'stopped=1; kill -TERM "$workers"' TERM
code=0
wait "$workers" || code=$?
while kill -0 "$workers" 2>/dev/null; do
  code=0
  wait "$workers" || code=$?
done
if [ -z "$stopped" ] && [ "$code" = 0 ]; then
  hpo export "$study"
fi
exit "$code"
