#!/bin/bash -l
#PBS -N pilot-p1a2b3c4d5e
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -o job.out
#PBS -r n
#PBS -q main
#PBS -A ACCOUNT
#PBS -l select=2:ncpus=128:mpiprocs=128:ompthreads=1

module load ncarenv/25.10 || { echo 'pilot: cannot load module ncarenv/25.10: correct batch.modules in the site file'; exit 1; }
module load intel || { echo 'pilot: cannot load module intel: correct batch.modules in the site file'; exit 1; }
module load cray-mpich || { echo 'pilot: cannot load module cray-mpich: correct batch.modules in the site file'; exit 1; }
module load cray-mpich-abi || { echo 'pilot: cannot load module cray-mpich-abi: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.12
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
