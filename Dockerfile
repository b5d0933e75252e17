# syntax=docker/dockerfile:1
# Workers and commands, for machines without a GPU and with one:
#   docker build --target cpu -t enrich:cpu .
#   docker build --target gpu -t enrich:gpu .
#   docker run --rm -v "$PWD:/data" enrich:cpu enrich run --images bucket --adapter adapter --output output
# The tiny base is part of the package; full-size models come from a Hugging Face cache mounted at /models.
# Processes write only below /data and /tmp (and to /models if they download a model), so the root file system may be
# read-only. /data is HOME: in a volume, Prefect's results, pending uploads and compiled kernels outlive the container.

FROM python:3.11-slim-bookworm AS python
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

FROM python AS worker
# For contact sheets in any script: 7 MB for Chinese, Japanese and Korean, 7 MB for others, and a library that joins Arabic
# letters. fonts-noto-cjk and fonts-noto-core look better but take 134 MB.
RUN apt-get update && apt-get install -y --no-install-recommends fonts-droid-fallback fonts-freefont-ttf libfribidi0 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --no-create-home --uid 10001 enrich && install -d -o enrich -g enrich /data /models
# Relative paths in flow parameters start from /data. Telemetry is disabled.
WORKDIR /data
ENV HF_HOME=/models HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_RESULTS_DEFAULT_SERIALIZER=json
# The worker answers as long as it polls its pool; a container that runs another command has no health endpoint.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]

# Dependencies first, then the package: a code change creates, and pushes, a layer of about 20 MB.
FROM worker AS dependencies
RUN python -m venv /opt/venv && pip install --no-cache-dir --upgrade pip
COPY pyproject.toml constraints.txt /src/
RUN cd /src && mkdir enrich flows sample && touch README.md LICENSE enrich/__init__.py flows/__init__.py sample/__init__.py

FROM dependencies AS cpu
# An index with CPU builds of torch saves 4 GB of CUDA libraries; without it the usual builds are installed.
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip cd /src \
    && pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch \
    && pip install --constraint constraints.txt . && rm -rf build *.egg-info
RUN --mount=type=bind,target=/context cp -r /context /tmp/source \
    && pip install --no-cache-dir --no-deps --force-reinstall /tmp/source && rm -rf /tmp/source
COPY deployments /opt/enrich/deployments
USER 10001
ENV HOME=/data
CMD ["prefect", "worker", "start", "--pool", "cpu", "--with-healthcheck"]

FROM dependencies AS gpu
# Triton compiles its launchers when a kernel is first used. The host needs the NVIDIA driver and container toolkit only.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=cache,target=/root/.cache/pip cd /src \
    && pip install --constraint constraints.txt '.[vllm,ray,smolvlm]' && rm -rf build *.egg-info
RUN --mount=type=bind,target=/context cp -r /context /tmp/source \
    && pip install --no-cache-dir --no-deps --force-reinstall /tmp/source && rm -rf /tmp/source
COPY deployments /opt/enrich/deployments
USER 10001
ENV HOME=/data
CMD ["prefect", "worker", "start", "--pool", "gpu", "--with-healthcheck"]

# The Prefect server: docker build --target server -t enrich:server . In a separate environment, because vLLM requires an
# older FastAPI than the newest Prefect.
FROM python AS server
RUN --mount=type=bind,source=deployments/server-constraints.txt,target=/tmp/server-constraints.txt \
    python -m venv /opt/venv && pip install --no-cache-dir --upgrade pip \
    && pip install --no-cache-dir --constraint /tmp/server-constraints.txt prefect asyncpg
RUN useradd --no-create-home --uid 10001 prefect && install -d -o prefect -g prefect /data
USER 10001
WORKDIR /data
# /data stores the leases of concurrency limits, which are not in the database, and the SQLite database if no other is set.
# Prefect writes the files of its UI at start, and the root file system may be read-only.
ENV HOME=/data PREFECT_HOME=/data PREFECT_UI_STATIC_DIRECTORY=/tmp/ui DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:4200/api/health', timeout=5)"]
CMD ["prefect", "server", "start", "--host", "0.0.0.0"]
