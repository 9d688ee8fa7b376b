# The service and its command. Build: docker build -t greenplum-backup-service .
# A release passes the base image by its digest: docs/releasing.md.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /app
COPY requirements/production.txt requirements/
# The virtual environment is made where it will live: its scripts name their folder.
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/production.txt

FROM ${BASE}
# Nothing here belongs to the user that runs it, and nothing needs to be written.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin backups
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY backup-service ./
COPY migrations migrations
COPY service service
RUN ln -s /app/backup-service /usr/local/bin/backup-service
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 BACKUPS_LISTEN=0.0.0.0:50051
USER 10001
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=15s --start-period=20s --retries=5 CMD ["backup-service", "health"]
ENTRYPOINT ["backup-service"]
CMD ["serve"]
