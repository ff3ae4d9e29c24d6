#!/bin/bash
#SBATCH --job-name=pilot-p1a2b3c4d5e
#SBATCH --nodes=2
#SBATCH --time=01:00:00
#SBATCH --output=job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@120
#SBATCH --partition=qcpu
#SBATCH --account=ACCOUNT
#SBATCH --exclusive

module load OpenMPI/4.1.4-GCC-11.3.0 || { echo 'pilot: cannot load module OpenMPI/4.1.4-GCC-11.3.0: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.40
export OMPI_MCA_pml=ucx
export OMPI_MCA_mtl='^ofi'
export OMPI_MCA_btl='^ofi'
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
