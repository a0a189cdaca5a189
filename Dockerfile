# One node of the event store. Two stages, so that pip and its caches stay behind.
#
#   docker build -t ex-esdb .
#
# The image holds the pinned dependencies and the package `node`, and nothing else of the project.
# It needs no shell and no curl: the health check is the Python that is there anyway.

FROM docker.io/library/python:3.11-slim AS dependencies
COPY scripts/requirements.txt /tmp/requirements.txt
RUN python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile \
        --disable-pip-version-check --require-hashes -r /tmp/requirements.txt \
    && /opt/venv/bin/python -m compileall -q /opt/venv/lib

FROM docker.io/library/python:3.11-slim
RUN groupadd --gid 10001 esdb \
    && useradd --uid 10001 --gid esdb --no-create-home --home-dir /data --shell /usr/sbin/nologin esdb \
    && install -d -o esdb -g esdb -m 0750 /data
COPY --from=dependencies /opt/venv /opt/venv
COPY node /app/node
# Nothing writes below /app at run time, so the bytecode is made here, once.
RUN /opt/venv/bin/python -m compileall -q /app
WORKDIR /app
USER esdb
ENV PATH=/opt/venv/bin:$PATH \
    EX_ESDB_DATA_DIR=/data \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME /data
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8101/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "node"]
