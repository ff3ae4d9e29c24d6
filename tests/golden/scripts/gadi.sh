#!/bin/bash
#PBS -N pilot-p1a2b3c4d5e
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -o job.out
#PBS -r n
#PBS -q normal
#PBS -P ACCOUNT
#PBS -l ncpus=96
#PBS -l mem=389120mb
#PBS -l storage=scratch/ACCOUNT
#PBS -l wd

module load openmpi || { echo 'pilot: cannot load module openmpi: correct batch.modules in the site file'; exit 1; }
module load python3 || { echo 'pilot: cannot load module python3: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.40
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
