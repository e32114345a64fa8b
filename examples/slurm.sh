#!/bin/sh
# Distil on several machines under SLURM: sbatch examples/slurm.sh --data imagefolder:/data/plants --out /scratch/plants
# Every machine starts one torchrun, which starts a process for each of its GPUs. --out, the cache of decoded
# images and the store of stages are on a disk that all machines see.
#SBATCH --job-name=ltdd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -eu
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export LTDD_DATA="${LTDD_DATA:-$HOME/.cache/ltdd}"
export OMP_NUM_THREADS="$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))"
# The same job, requeued or sent again, goes on where it stopped.
exec srun torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
  -m ltdd distill "$@"
