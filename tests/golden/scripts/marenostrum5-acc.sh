#!/bin/bash -l
#SBATCH --job-name=pilot-p1a2b3c4d5e
#SBATCH --nodes=2
#SBATCH --time=01:00:00
#SBATCH --output=job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@120
#SBATCH --qos=acc_ehpc
#SBATCH --account=ACCOUNT
#SBATCH --partition=acc
#SBATCH --exclusive
#SBATCH --export=NONE
#SBATCH --gres=gpu:4

module load bsc/1.0 || { echo 'pilot: cannot load module bsc/1.0: correct batch.modules in the site file'; exit 1; }
module load miniforge || { echo 'pilot: cannot load module miniforge: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.40
export OMPI_MCA_pml=ucx
export OMPI_MCA_mtl='^ofi'
export OMPI_MCA_btl='^ofi'
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
