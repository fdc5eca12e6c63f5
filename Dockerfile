# The images of this project, one target each:
#   client   the `foley` command and SDK, for a server elsewhere          docker build --target client .
#   cpu      embedded Triton, the API and `foley`, for CPUs              docker build --target cpu .
#   engines  on a GPU machine: builds TensorRT engines of a bundle       docker build --target engines .
#   gpu      (the last) the official Triton, the API, for NVIDIA GPUs    docker build .
# Engines run only on the TensorRT version that built them: `gpu` and `engines` share one base image.
ARG PYTHON=3.12.12
ARG TRITON=26.06
ARG TENSORRT_MAJOR=11

# Process 1 of the images that serve: it passes on signals, and reaps the children of a Triton that has crashed.
FROM python:${PYTHON}-slim-bookworm AS init
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/*

FROM python:${PYTHON}-slim-bookworm AS python-build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/foley
ENV PATH=/opt/foley/bin:$PATH
WORKDIR /src
COPY deploy/constraints.txt deploy/
COPY core core
COPY pipeline pipeline
COPY client client

FROM python-build AS client-build
RUN pip install --constraint deploy/constraints.txt ./core ./pipeline './client[render,s3]'

FROM client-build AS cpu-build
COPY server server
RUN pip install --constraint deploy/constraints.txt './core[flow]' './server[triton]'

FROM python:${PYTHON}-slim-bookworm AS client
LABEL org.opencontainers.image.title="Video-Foley client" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home foley
COPY --from=client-build /opt/foley /opt/foley
ENV PATH=/opt/foley/bin:$PATH PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib
USER 10001
WORKDIR /work
ENTRYPOINT ["foley"]
CMD ["--help"]

FROM python:${PYTHON}-slim-bookworm AS cpu
LABEL org.opencontainers.image.title="Video-Foley for CPUs" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home foley && install --directory --owner=10001 /var/lib/foley
COPY --from=init /usr/bin/tini-static /usr/bin/tini
COPY --from=cpu-build /opt/foley /opt/foley
COPY model_repository /opt/foley/model_repository
COPY bundles/demo /opt/foley/bundle
COPY examples/*.mp4 /opt/foley/examples/
ENV PATH=/opt/foley/bin:$PATH PYTHONUNBUFFERED=1 \
    FOLEY_API_MODELS=/opt/foley/model_repository FOLEY_API_BUNDLE=/opt/foley/bundle FOLEY_API_DATA=/var/lib/foley \
    FOLEY_API_STUDIO_EXAMPLES=/opt/foley/examples \
    FOLEY_MODEL_REPOSITORY=/opt/foley/model_repository FOLEY_BUNDLE=/opt/foley/bundle
USER 10001
WORKDIR /var/lib/foley
EXPOSE 8080 8081 8090
VOLUME /var/lib/foley
# the port of the metrics, which has no TLS; without http_proxy
HEALTHCHECK --interval=15s --timeout=6s --start-period=30s CMD ["python", "-c", \
    "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8081, timeout=5); c.request('GET', '/live'); sys.exit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "foley-server"]
# closed by default: it ends with a message until it is told who may call, see deploy/README.md
CMD ["api", "--address", "0.0.0.0"]

FROM nvcr.io/nvidia/tritonserver:${TRITON}-py3 AS triton
ARG TENSORRT_MAJOR
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# fail here, not when the first engine is loaded
RUN ldconfig -p | grep "libnvinfer.so.${TENSORRT_MAJOR} " >/dev/null \
    || { echo "this Triton has no TensorRT ${TENSORRT_MAJOR}; choose another with --build-arg TRITON=YY.MM" >&2; exit 1; }

FROM triton AS gpu-build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Triton's image has no ensurepip
RUN python3 -m venv --without-pip /opt/foley && python3 -m pip --python /opt/foley/bin/python install pip
ENV PATH=/opt/foley/bin:$PATH
WORKDIR /src
COPY deploy/constraints.txt deploy/
COPY core core
COPY pipeline pipeline
COPY client client
COPY server server
RUN pip install --constraint deploy/constraints.txt './core[flow]' ./pipeline './client[render]' ./server

FROM gpu-build AS engines
ARG TENSORRT_MAJOR
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY export export
# the TensorRT version of Triton's image; torch identifies the GPU
RUN version="$(dpkg-query --showformat='${Version}' --show libnvinfer${TENSORRT_MAJOR} | cut --delimiter=- --fields=1)" \
    && pip install --constraint deploy/constraints.txt ./export "tensorrt==${version}.*"
RUN useradd --uid 10001 --create-home foley
USER 10001
WORKDIR /work
ENTRYPOINT ["foley-export"]
CMD ["tensorrt", "--help"]

FROM triton AS gpu
LABEL org.opencontainers.image.title="Video-Foley on NVIDIA GPUs" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home foley && install --directory --owner=10001 /var/lib/foley
COPY --from=init /usr/bin/tini-static /usr/bin/tini
COPY --from=gpu-build /opt/foley /opt/foley
COPY model_repository /opt/foley/model_repository
COPY examples/*.mp4 /opt/foley/examples/
ENV PATH=/opt/foley/bin:$PATH PYTHONUNBUFFERED=1 \
    FOLEY_API_DATA=/var/lib/foley FOLEY_API_MODELS=/opt/foley/model_repository \
    FOLEY_API_STUDIO_EXAMPLES=/opt/foley/examples \
    FOLEY_MODEL_REPOSITORY=/opt/foley/model_repository FOLEY_API_BUNDLE=/bundle FOLEY_BUNDLE=/bundle
USER 10001
WORKDIR /var/lib/foley
EXPOSE 8001 8002 8080 8081 8090
VOLUME ["/bundle", "/var/lib/foley"]
HEALTHCHECK --interval=15s --timeout=6s --start-period=900s CMD ["foley-server", "health", "127.0.0.1:8001"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "foley-server"]
CMD ["run", "--target", "tensorrt"]
