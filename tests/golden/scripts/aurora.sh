#!/bin/bash -l
#PBS -N pilot-p1a2b3c4d5e
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -o job.out
#PBS -r n
#PBS -q prod
#PBS -A ACCOUNT
#PBS -l select=256
#PBS -l place=scatter
#PBS -l filesystems=home:flare
#PBS -k doe

export MPI4PY_LIBMPI=libmpi.so.12
export http_proxy=http://proxy.alcf.anl.gov:3128
export ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE
export ZE_ENABLE_PCI_ID_DEVICE_ORDER=1
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
