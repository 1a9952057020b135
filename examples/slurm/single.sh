#!/bin/bash
# One run on several nodes. It is requeued when its time is up, and goes on where it was:
#   sbatch examples/slurm/single.sh --config run.yaml --trainer.default_root_dir runs/mine
#SBATCH --job-name=cil
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=SIGUSR1@120
set -euo pipefail

# One process for each GPU: Lightning reads SLURM's variables, so devices and nodes must be those above. A process that
# dies ends the others. 120 seconds before the time is up Lightning saves a checkpoint and requeues the job, which then
# starts from it; a job that was killed goes on from the newest checkpoint below `default_root_dir`.
srun --kill-on-bad-exit=1 lightning-cil fit "$@" \
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp \
    --ckpt_path last
