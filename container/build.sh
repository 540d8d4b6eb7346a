#!/bin/sh
# The steps that Dockerfile and Singularity.debian.def share, each run as root in an image being made of Debian 12:
#   sh container/build.sh system | tools | packages | torch-cpu | torch-cuda | package | commands | bake WHAT... | tidy
# Their comments say what they need; requirements/README.md says where torch comes from.
set -eu
cd "$(dirname "$0")/.."
prefix=/opt/neurostorm
export DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1

pip() { # into the image's environment, which has no pip of its own; always from a wheel or with our setuptools
  python3 -m pip --python $prefix/bin/python install --quiet --no-cache-dir --disable-pip-version-check \
    --root-user-action=ignore --no-build-isolation "$@"
}
apt() {
  apt-get update -q && apt-get install -y -q --no-install-recommends "$@" && rm -rf /var/lib/apt/lists/*
}

step=$1
shift
case $step in
system) # what a run needs of Debian
  apt ca-certificates python3 ;;
tools) # what only building needs; `tidy` takes it away
  apt g++ python3-dev python3-pip python3-venv ;;
packages) # everything but torch and our own package, file by file from the lock
  python3 -m venv --without-pip $prefix
  sed -n '/^setuptools==/,/--hash/p' requirements/container.lock > /tmp/setuptools.lock
  pip --no-deps --require-hashes -r /tmp/setuptools.lock
  pip --no-deps --require-hashes -r requirements/container.lock
  rm /tmp/setuptools.lock ;;
torch-cpu) # PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS say where CPU builds are, TORCH_SHA256 which file it must be
  cp requirements/torch.txt /tmp/torch.lock
  if [ -n "${TORCH_SHA256:-}" ]; then sed -i "s/^torch==.*/&+cpu --hash=sha256:$TORCH_SHA256/" /tmp/torch.lock; fi
  pip --no-deps -r /tmp/torch.lock
  rm /tmp/torch.lock
  if ls $prefix/lib/python3*/site-packages/torch/lib/libtorch_cuda* > /dev/null 2>&1; then
    echo "pip found a CUDA build of torch. Say with PIP_EXTRA_INDEX_URL where PyTorch's CPU builds are (a build argument)," \
      "or build the target cuda." >&2
    exit 1
  fi ;;
torch-cuda) # with CUDA's libraries and Triton; with MAMBA_SSM its kernels too, by an nvcc that pip brings
  # `===` lets no CPU build (2.x.y+cpu) pass for it; CUDA_BUILD asks for another one, such as cu126
  pip "torch===$(sed -n 's/^torch==//p' requirements/torch.txt)${CUDA_BUILD:++$CUDA_BUILD}" triton
  if ! ls $prefix/lib/python3*/site-packages/torch/lib/libtorch_cuda* > /dev/null 2>&1; then
    echo "pip found a build of torch without CUDA." >&2
    exit 1
  fi
  if [ -n "${MAMBA_SSM:-}" ]; then
    cuda=$($prefix/bin/python -c 'import torch; print(torch.version.cuda)')
    pip ninja wheel "cuda-toolkit[nvcc,cccl,cudart]==$cuda.*"
    CUDA_HOME=$(echo $prefix/lib/python3*/site-packages/nvidia/cu${cuda%%.*})
    export CUDA_HOME MAMBA_FORCE_BUILD=TRUE PATH="$prefix/bin:$PATH"
    pip -c requirements/torch.txt "$MAMBA_SSM"
  fi ;;
package) # this package, with its native kernels
  pip --no-deps . ;;
commands) # on the PATH of login shells too, which forget the image's
  for name in neurostorm neurostorm-models neurostorm-phantom neurostorm-train; do
    ln -sf $prefix/bin/$name /usr/local/bin/$name
  done ;;
bake) # files of others, where a run looks for them
  mkdir -p "$NEUROSTORM_CACHE" "$TEMPLATEFLOW_HOME"
  PATH="$prefix/bin:$PATH" python -m bids_app.catalog.bake "$@"
  chmod -R a+rX "$NEUROSTORM_CACHE" "$TEMPLATEFLOW_HOME" ;;
tidy) # what `tools` brought
  apt-get purge -y -q g++ python3-dev python3-pip python3-venv && apt-get autoremove -y -q ;;
*)
  sed -n '2,4s/^# //p' "$0" >&2
  exit 64 ;;
esac
