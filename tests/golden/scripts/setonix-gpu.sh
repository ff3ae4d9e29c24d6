#!/bin/bash -l
#SBATCH --job-name=pilot-p1a2b3c4d5e
#SBATCH --nodes=2
#SBATCH --time=01:00:00
#SBATCH --output=job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@120
#SBATCH --partition=gpu
#SBATCH --account=ACCOUNT
#SBATCH --exclusive
#SBATCH --export=NONE
#SBATCH --gres=gpu:8

module load python/3.11.6 || { echo 'pilot: cannot load module python/3.11.6: correct batch.modules in the site file'; exit 1; }
module load rocm || { echo 'pilot: cannot load module rocm: correct batch.modules in the site file'; exit 1; }
module load cray-mpich-abi || { echo 'pilot: cannot load module cray-mpich-abi: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.12
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
