#!/bin/bash
# One run for each seed, as an array of jobs, each with one GPU and a root of its own (`runs/seed_<n>` by default):
#   sbatch --array=0-4 examples/slurm/array.sh --config run.yaml
#   ROOT=runs/lwf sbatch --array=0-4 examples/slurm/array.sh --config run.yaml --model LwF
# One job for each task instead, one after the other (%1), for runs longer than the cluster's time limit:
#   PER=task SEED=0 sbatch --array=0-9%1 examples/slurm/array.sh --config run.yaml
#SBATCH --job-name=cil
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=SIGUSR1@120
set -euo pipefail

root=${ROOT:-runs}
case ${PER:-seed} in
    seed) seed=$SLURM_ARRAY_TASK_ID ; stop=() ;;
    task) seed=${SEED:-0} ; stop=(--stop_after_task "$SLURM_ARRAY_TASK_ID") ;;
    *) echo "array.sh: PER=$PER, expected 'seed' or 'task'" >&2 ; exit 2 ;;
esac
srun --kill-on-bad-exit=1 lightning-cil fit "$@" --seed_everything "$seed" --trainer.devices 1 \
    --trainer.default_root_dir "$root/seed_$seed" --ckpt_path last ${stop[@]+"${stop[@]}"}
