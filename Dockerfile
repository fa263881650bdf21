# The Python processes of the shop: a container's command chooses one. It builds for both architectures:
# `docker buildx build --platform linux/amd64,linux/arm64 .`

# The page of /docs.
FROM --platform=$BUILDPLATFORM node:24-slim AS docs
WORKDIR /docs
COPY gateway/docs/package.json gateway/docs/package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund

FROM python:3.13-slim-trixie AS packages
WORKDIR /packages
RUN python -m venv --without-pip /venv
COPY requirements.txt ./
RUN pip --python /venv install --no-cache-dir --require-hashes --requirement requirements.txt
COPY kit kit
RUN pip --python /venv install --no-cache-dir --no-deps --no-build-isolation ./kit

FROM python:3.13-slim-trixie
LABEL org.opencontainers.image.title="Forage" \
      org.opencontainers.image.description="An event-driven shop on Nameko: its services, its gateway, its migrations"
RUN groupadd --gid 10001 forage && \
    useradd --uid 10001 --gid forage --no-create-home --home-dir /tmp --shell /usr/sbin/nologin forage
WORKDIR /app
COPY --from=packages /venv /venv
COPY --from=docs /docs/node_modules/swagger-ui-dist/LICENSE \
     /docs/node_modules/swagger-ui-dist/swagger-ui.css \
     /docs/node_modules/swagger-ui-dist/swagger-ui-bundle.js \
     /docs/node_modules/swagger-ui-dist/favicon-32x32.png \
     gateway/docs/node_modules/swagger-ui-dist/
COPY alembic.ini config.yaml deploy/docker/entrypoint ./
COPY templates templates
COPY migrations migrations
COPY ops ops
COPY contracts contracts
COPY extensions extensions
COPY services services
COPY gateway gateway
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    # Eventlet shows a deprecation warning when it is imported first; docs/decisions/ explains why we use it.
    PYTHONWARNINGS=ignore:::nameko.cli.commands,ignore:::nameko.containers \
    # Without eventlet's resolver a process needs 11 MB less. The kit looks up names in its place.
    EVENTLET_NO_GREENDNS=yes \
    METRICS_HOST=0.0.0.0 \
    METRICS_PORT=9100
# The file system is read-only at run time: a module that is not compiled now would be compiled at every start.
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 3000 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-Ic", "import os, urllib.request as http; http.urlopen(f'http://127.0.0.1:{os.environ[\"METRICS_PORT\"]}/readyz', timeout=4)"]
ENTRYPOINT ["/app/entrypoint"]
CMD ["nameko", "run", "--config", "config.yaml", "gateway"]
