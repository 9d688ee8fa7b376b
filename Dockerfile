# The service and its command. Build: docker build -t greenplum-backup-service .
# A release passes the base image by its digest: docs/releasing.md.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /app
COPY requirements/build.txt requirements/production.txt requirements/
# The virtual environment is created at its final path, which its scripts contain. It has no pip of its own.
# The build tools have another one: a package of the base image's distribution cannot be replaced.
RUN python -m venv --without-pip .venv \
 && python -m venv --without-pip /build \
 && python -m pip --python .venv/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/production.txt \
 && python -m pip --python /build/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/build.txt
COPY . .
RUN /build/bin/python -m hatchling build --target wheel \
 && python -m pip --python .venv/bin/python install --no-index --no-deps --disable-pip-version-check dist/*.whl

FROM ${BASE}
# The user that runs the service owns no file and writes none. Package installers are removed, so that an attacker in the container has none.
RUN groupadd --system --gid 10001 backups \
 && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin backups \
 && python -c 'import importlib.util as u, shutil; [shutil.rmtree(f) for n in ("pip", "ensurepip", "setuptools", "wheel") if (s := u.find_spec(n)) for f in s.submodule_search_locations]' \
 && rm -f /usr/bin/pip* /usr/local/bin/pip* \
 && ln -s /app/.venv/bin/backup-service /usr/local/bin/backup-service
COPY --from=build /app/.venv /app/.venv
WORKDIR /app
ENV BACKUPS_LISTEN=0.0.0.0:50051
LABEL org.opencontainers.image.title="greenplum-backup-service" \
      org.opencontainers.image.description="The Managed Greenplum BackupService gRPC API over the backups that WAL-G and gpbackup make" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# The commit that the image was built from: --build-arg REVISION="$(git rev-parse HEAD)"
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=15s --start-period=20s --retries=5 CMD ["backup-service", "health"]
ENTRYPOINT ["backup-service"]
CMD ["serve"]
