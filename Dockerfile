# NeuroSTORM as a BIDS App. Targets: cpu (the default) and cuda. docs/hpc.md describes how to build and run them. The
# mounts need BuildKit (Docker 23 or later) or buildah.
#
#   BASE_IMAGE      Debian 12, by digest for a release (`make release-image`); the lock files are for its Python 3.11
#   BASE_DIGEST     the digest in BASE_IMAGE, as a label and in the provenance
#   PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS
#                   index or folder with a CPU build of torch; the default registry has CUDA builds only
#   TORCH_SHA256    hash of torch's file, if it is a build other than that of requirements/torch-cpu.lock or torch-cuda.lock
#   BAKE            what to include besides the demonstration model: templates, atlases, names of models,
#                   for example --build-arg BAKE="templates atlases neurostorm-5ds"
#   LICENSES        licences of the app and of what BAKE includes; the build fails with the right value if it is wrong
#   CUDA_BUILD      for cuda: a build of torch other than the registry's, such as cu126, from PIP_EXTRA_INDEX_URL
#   MAMBA_SSM       for cuda: "mamba-ssm==2.3.2.post1" also compiles its kernels
#   IMAGE           name and tag under which the image is published, for the outputs (GeneratedBy)
#   VERSION, REVISION, CREATED, SOURCE_URL   values of the labels
ARG BASE_IMAGE=debian:bookworm-slim
ARG BASE_DIGEST=""
ARG VERSION=0.1.0
ARG REVISION=""
ARG CREATED=""
ARG SOURCE_URL=""
ARG BAKE=""
ARG LICENSES="Apache-2.0"

FROM ${BASE_IMAGE} AS base
COPY container/build.sh /src/container/build.sh
RUN --mount=type=cache,target=/cache/apt,sharing=locked sh /src/container/build.sh system

FROM base AS tools
RUN --mount=type=cache,target=/cache/apt,sharing=locked sh /src/container/build.sh tools

FROM tools AS packages
COPY requirements /src/requirements
RUN --mount=type=cache,target=/cache/pip --mount=type=cache,target=/cache/apt,sharing=locked \
    sh /src/container/build.sh packages

FROM packages AS torch-cpu
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG TORCH_SHA256
RUN --mount=type=cache,target=/cache/pip LAYER=/opt/layers/torch sh /src/container/build.sh torch-cpu

# Triton's kernels support GPUs from sm_75 to sm_120 (sm_70 with a CUDA 12 build of torch); mamba-ssm's kernels are compiled for
# the architectures listed in its own build.
FROM packages AS torch-cuda
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG TORCH_SHA256
ARG CUDA_BUILD=""
ARG MAMBA_SSM=""
ARG MAX_JOBS=4
RUN --mount=type=cache,target=/cache/pip LAYER=/opt/layers/torch sh /src/container/build.sh torch-cuda

# The package needs no torch: a change of the code changes its own, small layer only.
FROM packages AS package
COPY . /src
RUN LAYER=/opt/layers/package sh /src/container/build.sh package

FROM packages AS data
COPY --from=package /opt/layers/package /opt/neurostorm
ARG BAKE
ARG LICENSES
ENV NEUROSTORM_CACHE=/opt/data/neurostorm TEMPLATEFLOW_HOME=/opt/data/templateflow
RUN sh /src/container/build.sh bake ${BAKE}

FROM packages AS sbom-tools
RUN --mount=type=cache,target=/cache/pip sh /src/container/build.sh sbom-tools

FROM base AS runtime
ENV PATH=/opt/neurostorm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NEUROSTORM_CACHE=/opt/data/neurostorm \
    TEMPLATEFLOW_HOME=/opt/data/templateflow
RUN sh /src/container/build.sh commands
COPY container/provenance.py /src/container/provenance.py
ARG BASE_IMAGE
ARG BASE_DIGEST
ARG VERSION
ARG REVISION
ARG CREATED
ARG SOURCE_URL
ARG LICENSES
LABEL org.opencontainers.image.title="NeuroSTORM BIDS App" \
      org.opencontainers.image.description="A foundation model for functional MRI: raw BIDS in; embeddings, predictions and reports out" \
      org.opencontainers.image.vendor="The NeuroSTORM developers" \
      org.opencontainers.image.authors="The NeuroSTORM developers" \
      org.opencontainers.image.licenses="${LICENSES}" \
      org.opencontainers.image.url="${SOURCE_URL}" \
      org.opencontainers.image.source="${SOURCE_URL}" \
      org.opencontainers.image.documentation="${SOURCE_URL}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
WORKDIR /tmp
# tini is process 1: it passes SIGTERM on and reaps orphaned processes.
ENTRYPOINT ["/usr/bin/tini", "--", "neurostorm"]
CMD ["--help"]

FROM runtime AS assembled-cpu
COPY --from=packages /opt/neurostorm /opt/neurostorm
COPY --from=torch-cpu /opt/layers/torch /opt/neurostorm
COPY --from=data /opt/data /opt/data
COPY --from=package /opt/layers/package /opt/neurostorm
ARG VERSION
ARG IMAGE=neurostorm:${VERSION}
ENV NEUROSTORM_IMAGE=${IMAGE}

FROM assembled-cpu AS inventory-cpu
COPY --from=sbom-tools /opt/sbom /opt/sbom
ARG BASE_IMAGE
ARG BASE_DIGEST
ARG REVISION
ARG CREATED
ARG SOURCE_URL
ARG BAKE
RUN sh /src/container/build.sh inventory

FROM assembled-cpu AS cpu
COPY --from=inventory-cpu /opt/neurostorm/share/neurostorm /opt/neurostorm/share/neurostorm
RUN neurostorm --self-test

FROM runtime AS assembled-cuda
COPY --from=packages /opt/neurostorm /opt/neurostorm
COPY --from=torch-cuda /opt/layers/torch /opt/neurostorm
COPY --from=data /opt/data /opt/data
COPY --from=package /opt/layers/package /opt/neurostorm
ARG VERSION
ARG IMAGE=neurostorm:${VERSION}-cuda
ENV NEUROSTORM_IMAGE=${IMAGE}

FROM assembled-cuda AS inventory-cuda
COPY --from=sbom-tools /opt/sbom /opt/sbom
ARG BASE_IMAGE
ARG BASE_DIGEST
ARG REVISION
ARG CREATED
ARG SOURCE_URL
ARG BAKE
RUN sh /src/container/build.sh inventory

FROM assembled-cuda AS cuda
COPY --from=inventory-cuda /opt/neurostorm/share/neurostorm /opt/neurostorm/share/neurostorm
RUN neurostorm --self-test

# The default target.
FROM cpu
