#!/bin/bash
#SBATCH --job-name=pilot-p1a2b3c4d5e
#SBATCH --nodes=2
#SBATCH --time=01:00:00
#SBATCH --output=job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@120
#SBATCH --partition=standard-g
#SBATCH --account=ACCOUNT
#SBATCH --exclusive
#SBATCH --gpus-per-node=8

module load LUMI/24.03
module load partition/G
module load rocm
module load cray-python
module load cray-mpich-abi
export MPI4PY_LIBMPI=libmpi.so.12
export FI_MR_CACHE_MONITOR=memhooks
export FI_CXI_RX_MATCH_MODE=software
export MPICH_SMP_SINGLE_COPY_MODE=NONE
export ROCFFT_RTC_CACHE_PATH=/dev/null
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
