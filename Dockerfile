# The service in an image: `docker build --target cpu` or `--target gpu`. How to build, run and deploy: docs/operations.md.
# Bases are pinned by tag; for a reproducible image pass a digest, e.g. --build-arg PYTHON_IMAGE=python@sha256:….
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

FROM scratch AS source
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY relevance /src/relevance
COPY service /src/service
COPY training /src/training
COPY export /src/export

# A base has Python, the user of the service, and the folders that it may write to; a build leaves /opt/relevance.
FROM ${PYTHON_IMAGE} AS cpu-base
RUN groupadd --gid 10001 relevance \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin relevance \
    && install --directory --owner=10001 --group=10001 /bundles

FROM cpu-base AS cpu-build
WORKDIR /src
COPY --from=source /src /src
RUN python3 -m venv /opt/relevance \
    && /opt/relevance/bin/python -m pip install --no-cache-dir --constraint constraints.txt pip \
    && /opt/relevance/bin/python -m pip install --no-cache-dir --constraint constraints.txt \
        --build-constraint constraints.txt '.[service]' \
    && /opt/relevance/bin/python -m pip check
# The offline world stays outside: the build ends here if any of it can be imported.
RUN /opt/relevance/bin/python -c "import importlib.util as u, sys; \
found = [m for m in ('torch', 'transformers', 'onnx', 'ray') if u.find_spec(m)]; \
sys.exit(f'expected the service extra alone, found {found}' if found else 0)"
# The default bundle, under a name that does not depend on the version of Python; its golden pairs are replayed.
RUN ln -s "$(/opt/relevance/bin/python -c 'from service.settings import DEFAULT_BUNDLE; print(DEFAULT_BUNDLE)')" \
        /opt/relevance/default_bundle \
    && /opt/relevance/bin/relevance verify /opt/relevance/default_bundle

# For CUDA: Ubuntu's own Python; cuBLAS and cuDNN come with the image. With a version of the Debian package libnvinfer10
# in TENSORRT (`apt-cache madison libnvinfer10` in the base lists them) the libraries of TensorRT are there too.
FROM ${CUDA_IMAGE} AS gpu-base
ARG TENSORRT=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
        ${TENSORRT:+"libnvinfer10=${TENSORRT}" "libnvonnxparsers10=${TENSORRT}"} \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 relevance \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin relevance \
    && install --directory --owner=10001 --group=10001 /bundles /engines

FROM gpu-base AS gpu-build
WORKDIR /src
COPY --from=source /src /src
RUN python3 -m venv /opt/relevance \
    && /opt/relevance/bin/python -m pip install --no-cache-dir --constraint constraints.txt pip \
    && /opt/relevance/bin/python -m pip install --no-cache-dir --constraint constraints.txt \
        --build-constraint constraints.txt '.[service-gpu]' \
    && /opt/relevance/bin/python -m pip check
RUN /opt/relevance/bin/python -c "import importlib.util as u, sys; \
found = [m for m in ('torch', 'transformers', 'onnx', 'ray') if u.find_spec(m)]; \
sys.exit(f'expected the service-gpu extra alone, found {found}' if found else 0)"
RUN ln -s "$(/opt/relevance/bin/python -c 'from service.settings import DEFAULT_BUNDLE; print(DEFAULT_BUNDLE)')" \
        /opt/relevance/default_bundle \
    && /opt/relevance/bin/relevance verify /opt/relevance/default_bundle

FROM gpu-base AS gpu
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="relevance-tiers" \
    org.opencontainers.image.description="Calibrated relevance tiers for search ads, on a GPU by CUDA" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=gpu-build /opt/relevance /opt/relevance
ENV PATH=/opt/relevance/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RELEVANCE_HOST=0.0.0.0 \
    RELEVANCE_PORT=8000 \
    RELEVANCE_PROVIDER=cuda \
    RELEVANCE_ENGINE_CACHE=/engines
WORKDIR /
USER 10001:10001
VOLUME ["/bundles", "/engines"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['RELEVANCE_PORT']), timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["relevance"]
CMD ["serve"]

FROM cpu-base AS cpu
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="relevance-tiers" \
    org.opencontainers.image.description="Calibrated relevance tiers for search ads, on CPUs" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=cpu-build /opt/relevance /opt/relevance
ENV PATH=/opt/relevance/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RELEVANCE_HOST=0.0.0.0 \
    RELEVANCE_PORT=8000
WORKDIR /
USER 10001:10001
VOLUME ["/bundles"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['RELEVANCE_PORT']), timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["relevance"]
CMD ["serve"]
