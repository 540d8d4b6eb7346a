#!/bin/sh
# Build steps used by Dockerfile and Singularity.debian.def; each runs as root in an image based on Debian 12:
#   sh container/build.sh system | tools | packages | torch-cpu | torch-cuda | package | commands | bake WHAT... | tidy
# See the comment of each step for its inputs, and requirements/README.md for the builds of torch.
set -eu
cd "$(dirname "$0")/.."
prefix=/opt/neurostorm
export DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1

pip() { # installs into the image's environment, which has no pip; builds use the pinned setuptools
  python3 -m pip --python $prefix/bin/python install --quiet --no-cache-dir --disable-pip-version-check \
    --root-user-action=ignore --no-build-isolation "$@"
}
apt() {
  apt-get update -q && apt-get install -y -q --no-install-recommends "$@" && rm -rf /var/lib/apt/lists/*
}

step=$1
shift
case $step in
system) # Debian packages needed at run time
  apt ca-certificates python3 ;;
tools) # Debian packages needed for building only; `tidy` removes them
  apt g++ python3-dev python3-pip python3-venv ;;
packages) # all Python packages except torch and ours, with the hashes of the lock file
  python3 -m venv --without-pip $prefix
  sed -n '/^setuptools==/,/--hash/p' requirements/container.lock > /tmp/setuptools.lock
  pip --no-deps --require-hashes -r /tmp/setuptools.lock
  pip --no-deps --require-hashes -r requirements/container.lock
  rm /tmp/setuptools.lock ;;
torch-cpu) # from PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS; TORCH_SHA256 is the expected hash
  cp requirements/torch.txt /tmp/torch.lock
  if [ -n "${TORCH_SHA256:-}" ]; then sed -i "s/^torch==.*/&+cpu --hash=sha256:$TORCH_SHA256/" /tmp/torch.lock; fi
  pip --no-deps -r /tmp/torch.lock
  rm /tmp/torch.lock
  if ls $prefix/lib/python3*/site-packages/torch/lib/libtorch_cuda* > /dev/null 2>&1; then
    echo "pip installed a CUDA build of torch. Set the build argument PIP_EXTRA_INDEX_URL to the index of PyTorch's CPU" \
      "builds, or build the target cuda." >&2
    exit 1
  fi ;;
torch-cuda) # torch with CUDA's libraries, and Triton; MAMBA_SSM also compiles its kernels, with nvcc installed by pip
  # `===` excludes CPU builds (2.x.y+cpu); CUDA_BUILD selects another CUDA build, such as cu126
  pip "torch===$(sed -n 's/^torch==//p' requirements/torch.txt)${CUDA_BUILD:++$CUDA_BUILD}" triton
  if ! ls $prefix/lib/python3*/site-packages/torch/lib/libtorch_cuda* > /dev/null 2>&1; then
    echo "pip installed a build of torch without CUDA. Check the package index." >&2
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
commands) # links in /usr/local/bin, because login shells reset the image's PATH
  for name in neurostorm neurostorm-models neurostorm-phantom neurostorm-train; do
    ln -sf $prefix/bin/$name /usr/local/bin/$name
  done ;;
bake) # weights, templates and atlases, in the folders that a run reads
  mkdir -p "$NEUROSTORM_CACHE" "$TEMPLATEFLOW_HOME"
  PATH="$prefix/bin:$PATH" python -m bids_app.catalog.bake "$@"
  chmod -R a+rX "$NEUROSTORM_CACHE" "$TEMPLATEFLOW_HOME" ;;
tidy) # removes the packages of `tools`
  apt-get purge -y -q g++ python3-dev python3-pip python3-venv && apt-get autoremove -y -q ;;
*)
  sed -n '2,4s/^# //p' "$0" >&2
  exit 64 ;;
esac
