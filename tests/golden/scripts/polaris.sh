#!/bin/bash -l
#PBS -N pilot-p1a2b3c4d5e
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -o job.out
#PBS -r n
#PBS -q prod
#PBS -A ACCOUNT
#PBS -l select=10:system=polaris
#PBS -l place=scatter
#PBS -l filesystems=home:eagle

module load cray-mpich-abi || { echo 'pilot: cannot load module cray-mpich-abi: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.12
export http_proxy=http://proxy.alcf.anl.gov:3128
export TMPDIR=/tmp
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
