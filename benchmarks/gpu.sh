#!/usr/bin/env bash
# All that needs a GPU, within 9 minutes on one H100 or H200; a step that fails stops none of the others.
#
#     bash benchmarks/gpu.sh [--out FOLDER]               leaves gpu_*.json, in benchmarks/results if not told
#     bash benchmarks/gpu.sh --rehearse --out FOLDER      the same steps in tiny sizes on the CPU, with nothing compiled

set -uo pipefail
cd "$(dirname "$0")/.."

out=benchmarks/results rehearse='' failed=()
while (($#)); do
    case $1 in
        --out) out=${2:?needs a folder}; shift 2 ;;
        --rehearse) rehearse=yes; shift ;;
        *) echo "gpu.sh: error: $1 is unknown; give --out FOLDER, --rehearse or nothing" >&2; exit 2 ;;
    esac
done
mkdir -p "$out" || exit
rm -f "$out"/gpu_*.json  # what lies there afterwards is of this run

step() {  # step NAME SECONDS COMMAND...
    local name=$1 limit=$2 left=$((budget - SECONDS)) code=0
    shift 2
    echo "== $name, at $SECONDS s"
    timeout --kill-after=5 $((left < 1 ? 1 : limit < left ? limit : left)) "$@" || code=$?
    case $code in
        0) ;;
        124 | 137) failed+=("$name (out of time)") ;;
        *) failed+=("$name (exit $code)") ;;
    esac
    return $code
}

measure() {  # measure NAME SECONDS SCRIPT ARGUMENTS...
    local name=$1 limit=$2 script=$3
    shift 3
    step "$name" "$limit" python3 "benchmarks/$script" "${model[@]}" "$@" "${how[@]}" --out "$out/gpu_$name.json"
}

if [[ $rehearse ]]; then
    export TORCHDYNAMO_DISABLE=1  # compiling takes minutes on a CPU
    budget=300 device=cpu collect=--collect-only batch=2 clip=4 short=1 long=3 memory=120
    model=(--model FLAV-tiny --predict-frames 3)
    how=(--device cpu --warmup 0 --repeats 1)
else
    budget=530 device=cuda collect='' batch=16 clip=16 short=40 long=240
    memory=$(python3 -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory >> 30)') || exit
    model=(--model FLAV-B/1)
    how=(--device cuda --dtype bfloat16 --warmup 3 --seconds 10)  # graphs are captured while warming up
fi
gpu_tests=(python3 -m pytest -q -p no:xdist -m gpu ${collect:+"$collect"})
mapfile -t others < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | grep -v test_graphed)

compiled=() ways=()  # those that work here
step compiling 60 python3 -c "import torch; torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device='$device'))" &&
    compiled=(--also compiled) && ways=(compiled)
step graphs 60 "${gpu_tests[@]}" tests/test_graphed.py && ways+=(graphs ${compiled:+compiled+graphs})
((${#ways[@]})) && ways=(--also "${ways[@]}")

step tests 60 "${gpu_tests[@]}" "${others[@]}"
measure forward 60 forward.py "${compiled[@]}"
measure rolling 70 rolling.py "${ways[@]}"
measure clip 90 sample_clip.py --batch-sizes 1 --frames "$clip" --no-switches "${ways[@]}"
measure stream 110 stream.py --codec sd-vae --vocoder hifigan --compare-frames "$short" --frames "$long" "${ways[@]}"
measure train_step 110 train_step.py --batch-size "$batch" --grad-ckpt "${compiled[@]}"
measure a2v 70 a2v.py --frames "$clip" "${compiled[@]}"
if ((memory >= 120)); then  # GiB; with nothing recomputed the activations of batch 16 are 98
    measure train_step_kept 80 train_step.py --batch-size "$batch" --no-grad-ckpt --no-reference "${compiled[@]}"
fi

python3 benchmarks/goals.py --results "$out" || failed+=(goals)
if ((${#failed[@]})); then
    printf 'gpu.sh: failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "all done in $SECONDS s"
