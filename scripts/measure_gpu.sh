#!/usr/bin/env bash
# Every figure of the README's "Speed" that takes a GPU, and the tests that only run on one.
# After pip install -e ".[dev]": bash scripts/measure_gpu.sh; some 40 minutes on one data-centre GPU.
# Tables go to runs/gpu_*/benchmark.md, numbers to runs/gpu_*/summary.json, profiles to profile.txt.
set -uo pipefail
cd "$(dirname "$0")/.."

step() {
    echo "== $*"
    "$@" || echo "FAILED: $*"
}
bench() {
    step python scripts/benchmark.py name="$1" "${@:2}"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
step python -m pytest -q -o addopts="" tests/test_gpu.py # without the annotations' checks, which cannot be compiled
step python -m pytest -q tests/test_ops.py

# FPS, kNN, Chamfer at the paper's training batch; goal: twice as fast as the best of the others
bench gpu_ops part=ops ops.clouds=128

# samples/s, share of the bf16 peak, memory, hours for 15.7 M samples; goal at 1024: 10,000, 30%, half an hour
# (one variant a process, so that peak memory is its own; 1024 takes an 80 GB card, float32 more)
for batch in 128 1024; do
    for variant in eager compiled graphs float32 "unfused optimiser"; do
        bench "gpu_train_${batch}_${variant// /_}" part=train train.batch_size="$batch" \
            "train.variants=[$variant]" train.profile=true
    done
done

# the whole loop, with clouds kept on the GPU and with eight processes that read them:
# samples_per_second of the last lines of runs/gpu_loop_*/metrics.jsonl
for kept in true false; do
    step python scripts/pretrain.py name=gpu_loop_$kept data=primitives "data.tests=[]" data.resample=true \
        data.train.num_points=2048 teacher=standin "model.feature_types=[text]" optim.epochs=3 \
        optim.warmup_epochs=0 picture_every=0 checkpoint_every=100000 workers=8 on_device=$kept
done

# S = 16 against S = 1 at t = 0; goal 1.15
bench gpu_infer part=infer infer.clouds=64
bench gpu_infer_1 part=infer infer.clouds=1 repeats=30

# PGD-50 with S = 8 against a loop over the paths, on ModelNet40's number of clouds in batches of 64
bench gpu_pgd part=attack repeats=3 attack.clouds=64 attack.steps=50 attack.search_steps=50

# C&W at its full budget on 256 clouds
bench gpu_cw part=attack repeats=1 attack.clouds=256 attack.steps=0 attack.searches=10 \
    attack.search_steps=500 attack.abort=null attack.warm_up=0 attack.rivals=false

# several GPUs in this machine: what summing gradients costs
gpus=$(nvidia-smi --list-gpus | wc -l)
if [ "$gpus" -gt 1 ]; then
    step torchrun --nproc-per-node "$gpus" scripts/benchmark.py part=scaling name=gpu_scaling
fi
