# mmkd with all it needs, on a base with or without CUDA: docs/stacks.md. `make lint` checks it; we have not built it.
ARG BASE=ubuntu:22.04
FROM ${BASE}

# As of tools/install.sh; NUMPY is a constraint, such as numpy<2.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_FIND_LINKS=""
ARG NUMPY=numpy

# The distribution's current versions are wanted. A compiler is for mmcv, where no wheel of it fits.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ libgl1 libglib2.0-0 make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/mmkd
COPY . .
RUN echo "${NUMPY}" >/tmp/constraints.txt \
    && PIP_CONSTRAINT=/tmp/constraints.txt PIP_NO_CACHE_DIR=1 tools/install.sh \
    && rm -rf /root/.cache

ENV PATH=/opt/mmkd/.venv/bin:$PATH
CMD ["bash"]
