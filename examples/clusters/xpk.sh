#!/bin/bash
# xpk submits a JobSet to the Kueue of a GKE cluster: bash xpk.sh
# One process for each host; a TPU v5e slice with 16 chips. Replace the words in capitals.
# With GPUs: --device-type=h100-80gb-8 --num-nodes=4 instead of --tpu-type.
# `exec` lets the process get the SIGTERM of a drained host.
xpk workload create --cluster=CLUSTER --workload=resnet \
  --docker-image=REGISTRY/resnet_jax --tpu-type=v5litepod-16 \
  --max-restarts=10 --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=120 \
  --command='exec resnet-jax train --config=imagenet_resnet --config.data.dir=/data/tfds --workdir=gs://BUCKET/run --stopped-status=75'
