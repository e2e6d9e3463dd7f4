# syntax=docker/dockerfile:1

# One file, five images:  docker build --build-arg SERVICE=chat -t docent-chat .
# SERVICE is one of: gateway chat ingest batch conversations
# EXTRAS adds to it: with --build-arg EXTRAS=,ocr ingest reads scanned pages.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG SERVICE=gateway

FROM ${PYTHON_IMAGE} AS build
ARG SERVICE
ARG EXTRAS=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /venv && mkdir libs services
COPY pyproject.toml README.md constraints.txt ./
# The package is installed without its code: this layer then changes with the dependencies alone, and no image gets
# the code of another service.
RUN /venv/bin/pip install -c constraints.txt ".[${SERVICE}${EXTRAS}]" && /venv/bin/pip uninstall --yes pip setuptools

FROM ${PYTHON_IMAGE} AS runtime
ARG SERVICE
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1
# A volume that is mounted here for blobs begins as the service's own.
RUN groupadd --gid 10001 docent \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin docent \
    && install --directory --owner=10001 --group=10001 /var/lib/docent/blobs
WORKDIR /app
COPY --from=build /venv /venv
COPY libs/__init__.py libs/__init__.py
COPY libs/common libs/common
COPY services/__init__.py services/__init__.py
COPY services/${SERVICE} services/${SERVICE}
# Nothing is written here, so compile once, now.
RUN python -m compileall -q libs services
USER 10001:10001
# Python itself is the first process, so that SIGTERM reaches the service. Any module can be given in its place:
#   docker run docent-gateway libs.common.records.migrate
ENTRYPOINT ["python", "-m"]

FROM runtime AS worker
ENV HEALTH_HOST=0.0.0.0 HEALTH_PORT=9100
EXPOSE 9100
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-Ic", \
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 9100, timeout=3); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]

# A command in exec form cannot name an argument, hence a stage for each service.
FROM runtime AS gateway
ENV GATEWAY_HOST=0.0.0.0 GATEWAY_PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-Ic", \
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=3); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["services.gateway.main"]

FROM worker AS chat
CMD ["services.chat.main"]

FROM worker AS ingest
CMD ["services.ingest.main"]

FROM worker AS batch
CMD ["services.batch.main"]

FROM worker AS conversations
CMD ["services.conversations.main"]

FROM ${SERVICE}
