# One image for every service: docker build --build-arg SERVICE=executor .
# SERVICE is executor, planner, critic, tools, examples or cli.

# What all services share: one layer of dependencies, each with the hash that the lock file names.
FROM python:3.11-slim AS dependencies
WORKDIR /build
COPY requirements.runtime.lock .
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
       --only-binary :all: -r requirements.runtime.lock

# What this service is made of, and no other service. The members are pure Python in one package,
# so their files are copied: a build would fetch a build tool that no lock file names.
FROM dependencies AS members
ARG SERVICE
COPY triptych triptych
COPY schemas schemas
COPY services services
COPY examples examples
RUN set -eu; \
    case "$SERVICE" in \
        executor|planner|critic) members="schemas $SERVICE" ;; \
        tools) members="schemas tools examples" ;; \
        examples) members="schemas examples" ;; \
        cli) members="schemas executor planner critic tools examples client commands embedded operator" ;; \
        *) echo "SERVICE is '$SERVICE'; it must be executor, planner, critic, tools, examples or cli" >&2; exit 1 ;; \
    esac; \
    mkdir -p /members/triptych; \
    for member in __init__.py __main__.py py.typed kernel contracts json_schema models playbook $members; do \
        cp -RL "triptych/$member" /members/triptych/; \
    done; \
    /venv/bin/python -m compileall -q /members

FROM python:3.11-slim
ARG SERVICE
RUN groupadd --gid 10001 triptych \
    && useradd --uid 10001 --gid triptych --no-create-home --shell /usr/sbin/nologin triptych \
    && install -d -o triptych -g triptych /data
COPY --from=dependencies /venv /venv
COPY --from=members /members /venv/lib/python3.11/site-packages
COPY deploy/entrypoint.sh /app/
WORKDIR /app
ENV PATH="/venv/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    SERVICE=$SERVICE \
    TRIPTYCH_HEALTH_HOST=0.0.0.0 \
    TRIPTYCH_HEALTH_PORT=8080
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health/live', timeout=4)"]
ENTRYPOINT ["/bin/sh", "/app/entrypoint.sh"]
