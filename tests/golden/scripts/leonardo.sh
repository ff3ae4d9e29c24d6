#!/bin/bash
#SBATCH --job-name=pilot-p1a2b3c4d5e
#SBATCH --nodes=2
#SBATCH --time=01:00:00
#SBATCH --output=job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@120
#SBATCH --qos=normal
#SBATCH --account=ACCOUNT
#SBATCH --partition=boost_usr_prod
#SBATCH --exclusive
#SBATCH --gres=gpu:4
#SBATCH --mem=494000

module load profile/base || { echo 'pilot: cannot load module profile/base: correct batch.modules in the site file'; exit 1; }
module load python/3.11 || { echo 'pilot: cannot load module python/3.11: correct batch.modules in the site file'; exit 1; }
module load openmpi/4.1.6 || { echo 'pilot: cannot load module openmpi/4.1.6: correct batch.modules in the site file'; exit 1; }
module load cuda/12 || { echo 'pilot: cannot load module cuda/12: correct batch.modules in the site file'; exit 1; }
export MPI4PY_LIBMPI=libmpi.so.40
exec /environment/bin/python -P -m pilot.agent /project/.pilot/pilots/p1a2b3c4d5e/settings.json
