#!/bin/bash -l
#PBS -N pilot-p1a2b3c4d5e
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -o job.out
#PBS -r n
#PBS -q main
#PBS -A ACCOUNT
#PBS -l select=2:ncpus=128:mpiprocs=128:ompthreads=1

module load ncarenv/25.10
module load intel
module load cray-mpich
module load cray-mpich-abi
export MPI4PY_LIBMPI=libmpi.so.12
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
