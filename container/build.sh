#!/bin/sh
# Build steps used by Dockerfile and Singularity.debian.def; each runs as root in an image based on Debian 12:
#   sh container/build.sh system | tools | packages | torch-cpu | torch-cuda | package | commands | bake WHAT... |
#                         sbom-tools | inventory | tidy
# See the comment of each step for its inputs, and requirements/README.md for the builds of torch. LAYER is a folder for what
# a step installs, to be copied over /opt/neurostorm; without it, the step installs there. /cache/apt and /cache/pip keep
# downloads if they exist.
set -eu
cd "$(dirname "$0")/.."
prefix=/opt/neurostorm
facts=${LAYER:-$prefix}/share/neurostorm
export DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1

# antspyx has no wheel for arm64: it is compiled, with its own build requirements.
isolation=--no-build-isolation
[ "$(uname -m)" = x86_64 ] || isolation=

pip_into() { # installs into an environment that has no pip; builds use the pinned setuptools
  environment=$1
  shift
  cache=--no-cache-dir
  [ ! -d /cache/pip ] || cache="--cache-dir /cache/pip"
  python3 -m pip --python "$environment/bin/python" install --quiet $cache --disable-pip-version-check \
    --root-user-action=ignore $isolation "$@"
}
pip() {
  pip_into $prefix ${LAYER:+--prefix "$LAYER"} "$@"
}
apt() {
  options=
  if [ -d /cache/apt ]; then
    mkdir -p /cache/apt/archives/partial /cache/apt/lists/partial
    options="-o Dir::Cache=/cache/apt -o Dir::State::lists=/cache/apt/lists -o APT::Keep-Downloaded-Packages=true"
  fi
  apt-get $options update -q && apt-get $options install -y -q --no-install-recommends "$@" && rm -rf /var/lib/apt/lists/*
}
torch_by_hash() { # installs torch's file of a lock file and records its version and hash; TORCH_SHA256 is another hash
  cp "$1" /tmp/torch.lock
  if [ -n "${TORCH_SHA256:-}" ]; then
    printf 'torch==%s --hash=sha256:%s\n' "$(sed 's/^torch==//' requirements/torch.txt)" "$TORCH_SHA256" > /tmp/torch.lock
  fi
  if ! pip --no-deps --require-hashes --report /tmp/torch.json -r /tmp/torch.lock; then
    echo "torch was not installed. If the file that pip found is the one you want, give its hash as the build argument" \
      "TORCH_SHA256. For PyTorch's CPU builds, set PIP_EXTRA_INDEX_URL to their index, or build the target cuda." >&2
    exit 1
  fi
  mkdir -p "$facts"
  python3 -c 'import json
(found,) = json.load(open("/tmp/torch.json"))["install"]
kind, value = found["download_info"]["archive_info"]["hash"].split("=")
print(json.dumps({"version": found["metadata"]["version"], kind: value}))
' > "$facts/torch.json"
  rm /tmp/torch.lock /tmp/torch.json
}
has_cuda() {
  ls "${LAYER:-$prefix}"/lib/python3*/site-packages/torch/lib/libtorch_cuda* > /dev/null 2>&1
}

step=$1
shift
case $step in
system) # Debian packages needed at run time
  apt ca-certificates python3 tini ;;
tools) # Debian packages needed for building only; `tidy` removes them
  apt g++ python3-dev python3-pip python3-venv ;;
packages) # all Python packages except torch and ours, with the hashes of the lock file
  [ "$(uname -m)" = x86_64 ] || apt cmake git make
  python3 -m venv --without-pip $prefix
  sed -n '/^setuptools==/,/--hash/p' requirements/container.lock > /tmp/setuptools.lock
  pip --no-deps --require-hashes -r /tmp/setuptools.lock
  pip --no-deps --require-hashes -r requirements/container.lock
  rm /tmp/setuptools.lock ;;
torch-cpu) # from PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS
  torch_by_hash requirements/torch-cpu.lock
  if has_cuda; then
    echo "pip installed a CUDA build of torch. Set the build argument PIP_EXTRA_INDEX_URL to the index of PyTorch's CPU" \
      "builds, or build the target cuda." >&2
    exit 1
  fi ;;
torch-cuda) # torch with CUDA's libraries, and Triton; MAMBA_SSM also compiles its kernels, with nvcc installed by pip
  # `===` excludes CPU builds (2.x.y+cpu); CUDA_BUILD selects another CUDA build, such as cu126
  torch="torch===$(sed 's/^torch==//' requirements/torch.txt)${CUDA_BUILD:++$CUDA_BUILD}"
  [ -n "${CUDA_BUILD:-}" ] || torch_by_hash requirements/torch-cuda.lock
  PYTHONPATH=$(echo "${LAYER:-$prefix}"/lib/python3*/site-packages) # so that pip and builds find what is in LAYER
  export PYTHONPATH
  pip "$torch" triton
  if ! has_cuda; then
    echo "pip installed a build of torch without CUDA. Check the package index." >&2
    exit 1
  fi
  if [ -n "${MAMBA_SSM:-}" ]; then
    cuda=$($prefix/bin/python -c 'import torch; print(torch.version.cuda)')
    pip ninja wheel "cuda-toolkit[nvcc,cccl,cudart]==$cuda.*"
    CUDA_HOME=$(echo "${LAYER:-$prefix}"/lib/python3*/site-packages/nvidia/cu${cuda%%.*})
    export CUDA_HOME MAMBA_FORCE_BUILD=TRUE PATH="${LAYER:-$prefix}/bin:$prefix/bin:$PATH"
    pip -c requirements/torch.txt "$MAMBA_SSM"
  fi ;;
package) # this package, with its native kernels, and the lock files as a record
  pip --no-deps .
  mkdir -p "$facts/requirements"
  cp requirements/*.lock requirements/torch.txt "$facts/requirements/" ;;
commands) # links in /usr/local/bin, because login shells reset the image's PATH
  for name in neurostorm neurostorm-models neurostorm-phantom neurostorm-train; do
    ln -sf $prefix/bin/$name /usr/local/bin/$name
  done ;;
bake) # weights, templates and atlases, in the folders that a run reads; LICENSES is compared with theirs
  mkdir -p "$NEUROSTORM_CACHE" "$TEMPLATEFLOW_HOME"
  PATH="$prefix/bin:$PATH" python -m bids_app.catalog.bake "$@"
  $prefix/bin/python -m bids_app.catalog.licences --check "$LICENSES"
  chmod -R a+rX "$NEUROSTORM_CACHE" "$TEMPLATEFLOW_HOME" ;;
sbom-tools) # programs that list packages, in /opt/sbom; `tidy` removes them
  python3 -m venv --without-pip /opt/sbom
  pip_into /opt/sbom --no-deps --require-hashes -r requirements/sbom.lock ;;
inventory) # software bills of materials (CycloneDX) and provenance of the image; needs no network
  facts=$prefix/share/neurostorm
  mkdir -p $facts
  /opt/sbom/bin/debsbom generate --sbom-type cdx --cdx-schema-version 1.6 --with-licenses --distro-name neurostorm \
    --out $facts/debian 2> /dev/null # a warning for each package whose maintainer is in no known form
  /opt/sbom/bin/cyclonedx-py environment --spec-version 1.6 --output-reproducible --output-format JSON \
    --output-file $facts/python.cdx.json $prefix/bin/python
  $prefix/bin/python container/provenance.py $facts ;;
tidy) # removes what `tools` and `sbom-tools` installed
  rm -rf /opt/sbom
  apt-get purge -y -q g++ python3-dev python3-pip python3-venv && apt-get autoremove -y -q ;;
*)
  sed -n '2,7s/^# //p' "$0" >&2
  exit 64 ;;
esac
