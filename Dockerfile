# The image of rerankd: the binary, ONNX Runtime, the system libraries these two name, CA roots.
#
#   docker build -t rerankd .
#   docker run --rm --read-only -p 8080:8080 rerankd
#
# `make proof-container` builds it without an engine and tries what it holds. That was done for amd64;
# for arm64 the library is pinned and nothing has been run.

ARG RUST_IMAGE=docker.io/library/rust:1.92-slim-bookworm
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /src
# More flags for cargo, to trade the speed of the program for that of its build.
ARG CARGO_FLAGS=""
COPY . .
RUN cargo build --release --locked ${CARGO_FLAGS}

FROM ${DEBIAN_IMAGE} AS onnxruntime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-pip \
    && rm -rf /var/lib/apt/lists/*
COPY scripts/fetch-onnxruntime.py scripts/onnxruntime.txt /scripts/
ARG TARGETARCH
RUN case "${TARGETARCH}" in \
        amd64) machine=x86_64 ;; \
        arm64) machine=aarch64 ;; \
        *) echo "no ONNX Runtime is pinned for '${TARGETARCH}'" >&2; exit 1 ;; \
    esac \
    && python3 /scripts/fetch-onnxruntime.py /onnxruntime --machine "${machine}"

# The root of the final image, put together where there is a shell.
FROM ${DEBIAN_IMAGE} AS root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=onnxruntime /onnxruntime /root/opt/rerankd
COPY --from=build /src/target/release/rerankd /src/LICENSE /root/opt/rerankd/
COPY docker/root.sh /
RUN sh /root.sh /root

FROM scratch
COPY --from=root /root /
ENV PATH=/opt/rerankd \
    RERANKD_LISTEN=0.0.0.0:8080 \
    HF_HOME=/data \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 10001:10001
# Models that are downloaded, and yours; nothing else is written.
VOLUME ["/data"]
EXPOSE 8080
# Ready takes about a second with the embedded model, and longer with a larger one.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 CMD ["/opt/rerankd/rerankd", "healthcheck"]
ENTRYPOINT ["/opt/rerankd/rerankd"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="rerankd" \
      org.opencontainers.image.description="HTTP reranking service for cross-encoders, on ONNX Runtime" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
