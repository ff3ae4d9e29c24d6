#!/bin/bash
#SBATCH --job-name=pilot-p1a2b3c4d5e
#SBATCH --nodes=2
#SBATCH --time=01:00:00
#SBATCH --output=job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@120
#SBATCH --partition=booster
#SBATCH --account=ACCOUNT
#SBATCH --exclusive
#SBATCH --gres=gpu:4

module load Stages/2025 || { echo 'pilot: cannot load module Stages/2025: correct batch.modules in the site file'; exit 1; }
module load GCC || { echo 'pilot: cannot load module GCC: correct batch.modules in the site file'; exit 1; }
module load OpenMPI || { echo 'pilot: cannot load module OpenMPI: correct batch.modules in the site file'; exit 1; }
module load Python || { echo 'pilot: cannot load module Python: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.40
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
