# One image for all services, migrations and the `ydht` command; compose.yaml says who runs what.
#
# What is built is what deploy/image/build.sh makes; deploy/try_image.sh runs the same without
# Docker, and starts services from it. The version of Python is the one that tests run on.

FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml requirements.lock README.md compile.py ./
COPY services ./services
COPY migrations ./migrations
COPY web ./web
COPY deploy/image ./deploy/image
RUN deploy/image/build.sh

FROM python:3.11-slim-bookworm
# Volumes take over who owns the directories that they are mounted on.
RUN groupadd --gid 10001 ydht \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin ydht \
    && install -d -o ydht -g ydht -m 0700 /data /secrets/ydht \
    && install -d -o ydht -g ydht -m 0755 /secrets/postgres /secrets/grafana
COPY --from=build /app /app
ENV PATH=/app/.venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
# By number, so that Kubernetes sees that it is not root.
USER 10001:10001
ENTRYPOINT ["/app/deploy/image/entry.sh"]
CMD ["ydht", "--help"]
