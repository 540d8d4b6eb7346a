#!/bin/bash
# All figures of a GPU that benchmarks/README.md leaves open, in one go.
#
#     benchmarks/gpu.sh [DATASET] | tee gpu.txt      # with DATASET: also the participant level on it
#
# Run it in the environment in which neurostorm is installed, on a node with a GPU. The exit code is 1 if a part fails;
# the others run all the same.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.." || exit 1
failed=()

part() {  # part TITLE COMMAND...
    printf '\n## %s\n\n`%s`\n\n' "$1" "${*:2}"
    "${@:2}" || failed+=("$1")
}

if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "PyTorch finds no GPU on this machine (torch.cuda.is_available() is false). Install a CUDA build of torch, or ask" >&2
    echo "the scheduler for a GPU." >&2
    exit 1
fi
python - <<'PYTHON'
import platform, torch
for k in range(torch.cuda.device_count()):
    known = torch.cuda.get_device_properties(k)
    print(f"GPU {k}: {known.name}, sm_{known.major}{known.minor}, {known.total_memory / 2**30:.0f} GiB")
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}")
PYTHON

part "Self-test" neurostorm --self-test
part "Tests" python -m pytest -q -m gpu -p no:xdist
part "Encoder" python benchmarks/encoder.py gpu
for batch in 1 8; do
    part "Pre-training, batches of $batch" python benchmarks/pretraining.py --device cuda --batch-size "$batch"
done
part "Head motion and model grid" python benchmarks/preprocess.py --protocol multiband --volumes 300 --no-peers --device cuda
if [ $# -gt 0 ]; then
    part "Participant level, GPU" python benchmarks/participant.py "$1" --device cuda
    part "Participant level, CPU" python benchmarks/participant.py "$1" --device cpu
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nFailed: %s\n' "${failed[*]}" >&2
    exit 1
fi
