#!/usr/bin/env bash
# A training whose workers are jobs of Slurm: sbatch infra/slurm.sh CONFIG.toml [--set KEY=VALUE]...
#
# This job is Boostline itself; it asks for the workers' jobs as the configuration says
# (cluster.kind = "slurm"). BOOSTLINE_HOME and this folder must be on a file system that every node
# sees, and the environment that `boostline` comes from, too.
#SBATCH --job-name=boostline
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=08:00:00
# a minute before the end Boostline is told, writes its checkpoint down and cancels its jobs
#SBATCH --signal=B:TERM@60
set -euo pipefail

config=${1:?usage: sbatch infra/slurm.sh CONFIG.toml [--set KEY=VALUE]...}
shift
exec boostline train "$config" --set cluster.kind=slurm "$@"
