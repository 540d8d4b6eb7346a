# NeuroSTORM as a BIDS App. Targets: cpu (the default) and cuda. docs/hpc.md describes how to build and run them.
#
#   BASE_IMAGE      Debian 12; requirements/container.lock is for its Python 3.11
#   PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS
#                   index or folder with a CPU build of torch; the default registry has CUDA builds only
#   TORCH_SHA256    expected hash of torch's file (optional)
#   BAKE            what to include besides the demonstration model: templates, atlases, names of models,
#                   for example --build-arg BAKE="templates atlases neurostorm-5ds"
#   CUDA_BUILD      for cuda: a build of torch other than the registry's, such as cu126, from PIP_EXTRA_INDEX_URL
#   MAMBA_SSM       for cuda: "mamba-ssm==2.3.2.post1" also compiles its kernels
#   VERSION, REVISION, CREATED   values of the labels
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
COPY container /src/container
RUN sh /src/container/build.sh system

FROM base AS packages
RUN sh /src/container/build.sh tools
COPY requirements /src/requirements
RUN sh /src/container/build.sh packages

FROM packages AS package-cpu
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG TORCH_SHA256
RUN sh /src/container/build.sh torch-cpu
COPY . /src
RUN sh /src/container/build.sh package

# Triton's kernels support GPUs from sm_75 to sm_120 (sm_70 with a CUDA 12 build of torch); mamba-ssm's kernels are compiled for
# the architectures listed in its own build.
FROM packages AS package-cuda
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG CUDA_BUILD=""
ARG MAMBA_SSM=""
ARG MAX_JOBS=4
RUN sh /src/container/build.sh torch-cuda
COPY . /src
RUN sh /src/container/build.sh package

# Downloading needs no torch, so the target cuda does not need a CPU build.
FROM packages AS data
COPY . /src
RUN sh /src/container/build.sh package
ARG BAKE=""
ENV NEUROSTORM_CACHE=/opt/data/neurostorm TEMPLATEFLOW_HOME=/opt/data/templateflow
RUN sh /src/container/build.sh bake ${BAKE}

FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION=""
ARG CREATED=""
ENV PATH=/opt/neurostorm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NEUROSTORM_CACHE=/opt/data/neurostorm \
    TEMPLATEFLOW_HOME=/opt/data/templateflow
RUN sh /src/container/build.sh commands
LABEL org.opencontainers.image.title="NeuroSTORM BIDS App" \
      org.opencontainers.image.description="A foundation model for functional MRI: raw BIDS in; embeddings, predictions and reports out" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
WORKDIR /tmp
ENTRYPOINT ["neurostorm"]
CMD ["--help"]
HEALTHCHECK --interval=1h --timeout=2m --start-period=2m CMD ["neurostorm", "--self-test"]

FROM runtime AS cpu
COPY --from=package-cpu /opt/neurostorm /opt/neurostorm
COPY --from=data /opt/data /opt/data
RUN neurostorm --self-test

FROM runtime AS cuda
COPY --from=package-cuda /opt/neurostorm /opt/neurostorm
COPY --from=data /opt/data /opt/data
RUN neurostorm --self-test

# The default target.
FROM cpu
