# `ltxq worker` on NVIDIA GPUs: docker build -f docker/worker.Dockerfile -t ltxq-worker .
# torch brings CUDA 13 in its packages; the host needs NVIDIA's driver 580 or newer and its container
# toolkit. Tokens and keys come by the environment at run time, never as build arguments.

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/ltxq
COPY requirements/worker.txt requirements/
RUN /opt/ltxq/bin/pip install --no-cache-dir --require-hashes -r requirements/worker.txt
COPY pyproject.toml README.md LICENSE ./
COPY producer producer
COPY worker worker
RUN /opt/ltxq/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim-bookworm
# Triton compiles a launcher for each kernel when it first runs. Not pinned: Debian drops old versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home ltxq \
    && install -d -o ltxq -g 0 -m 0775 /models /spool
COPY --from=build /opt/ltxq /opt/ltxq
ENV PATH=/opt/ltxq/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LTXQ_MODEL_DIR=/models \
    LTXQ_SPOOL_DIR=/spool/ltxq \
    LTXQ_METRICS_ADDRESS=0.0.0.0:9464 \
    LTXQ_LOG=json
# Any user of group 0 may run it, as `docker run --user 12345` and OpenShift do.
USER 10001
VOLUME ["/models", "/spool"]
EXPOSE 9464
# Alive, that is; whether a model is loaded is told by /readyz.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
ENTRYPOINT ["ltxq"]
CMD ["worker", "--gpus", "all"]
