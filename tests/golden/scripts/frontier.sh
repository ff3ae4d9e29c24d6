#!/bin/bash
#SBATCH --job-name=pilot-p1a2b3c4d5e
#SBATCH --nodes=2
#SBATCH --time=01:00:00
#SBATCH --output=job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@120
#SBATCH --partition=batch
#SBATCH --account=ACCOUNT
#SBATCH --exclusive

module load cray-python/3.11.5 || { echo 'pilot: cannot load module cray-python/3.11.5: correct batch.modules in the site file'; exit 1; }
module load rocm/6.2.4 || { echo 'pilot: cannot load module rocm/6.2.4: correct batch.modules in the site file'; exit 1; }
module load craype-accel-amd-gfx90a || { echo 'pilot: cannot load module craype-accel-amd-gfx90a: correct batch.modules in the site file'; exit 1; }
module load cray-mpich-abi || { echo 'pilot: cannot load module cray-mpich-abi: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.12
export FI_MR_CACHE_MONITOR=memhooks
export FI_CXI_RX_MATCH_MODE=software
export MPICH_SMP_SINGLE_COPY_MODE=NONE
export ROCFFT_RTC_CACHE_PATH=/dev/null
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
