# `ltxq gateway`, without torch: docker build -f docker/gateway.Dockerfile -t ltxq-gateway .
# The target `flower` is Flower on the same queue: … --target flower -t ltxq-flower .

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/ltxq
COPY requirements/gateway.txt requirements/
RUN /opt/ltxq/bin/pip install --no-cache-dir --require-hashes -r requirements/gateway.txt
COPY pyproject.toml README.md LICENSE ./
COPY producer producer
COPY worker worker
RUN /opt/ltxq/bin/pip install --no-cache-dir --no-deps .

FROM build AS build-flower
COPY requirements/flower.txt requirements/
RUN /opt/ltxq/bin/pip install --no-cache-dir --require-hashes -r requirements/flower.txt

FROM python:3.12-slim-bookworm AS flower
RUN useradd --uid 10001 --create-home ltxq
COPY --from=build-flower /opt/ltxq /opt/ltxq
ENV PATH=/opt/ltxq/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FLOWER_TASKS_COLUMNS=uuid,args,state,result,received,runtime,worker
USER 10001
EXPOSE 5555
HEALTHCHECK --interval=15s --timeout=5s --start-period=15s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5555/healthcheck', timeout=4)"]
ENTRYPOINT ["celery", "-A", "ltxq.celery:app", "flower"]
CMD ["--logging=warning"]

FROM python:3.12-slim-bookworm AS gateway
RUN useradd --uid 10001 --create-home ltxq
COPY --from=build /opt/ltxq /opt/ltxq
ENV PATH=/opt/ltxq/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LTXQ_METRICS_ADDRESS=0.0.0.0:9464 \
    LTXQ_LOG=json
USER 10001
EXPOSE 8080 9464
# Alive, that is; whether a clip could be made now is told by /readyz.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["ltxq"]
CMD ["gateway", "--host", "0.0.0.0", "--port", "8080"]
