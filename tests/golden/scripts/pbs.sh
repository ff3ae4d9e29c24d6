#!/bin/bash
#PBS -N pilot-p1a2b3c4d5e
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -o job.out
#PBS -r n
#PBS -A ACCOUNT
#PBS -l select=2:ncpus=4
#PBS -l place=scatter:excl

exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
