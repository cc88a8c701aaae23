# The image of rerankd: the binary, ONNX Runtime, the system libraries these two name, CA roots.
#
#   docker build -t rerankd .
#   docker run --rm --read-only -p 8080:8080 rerankd
#
# For another architecture than that of this machine, of amd64 and arm64:
#
#   docker buildx build --platform linux/arm64 --load -t rerankd:arm64 .
#
# Every command runs on the machine that builds: compilers make code for the other architecture, and what is copied
# for it is not run. `make proof-container` builds it without an engine and tries what it holds;
# `make proof-container ARCH=arm64` does so under emulation.

ARG RUST_IMAGE=docker.io/library/rust:1.92-slim-bookworm
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-slim

FROM --platform=${BUILDPLATFORM} ${RUST_IMAGE} AS build
WORKDIR /src
ARG TARGETARCH
COPY docker/compiler.sh /
RUN sh /compiler.sh "${TARGETARCH}"
ENV CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# More flags for cargo, to trade the speed of the program for that of its build.
ARG CARGO_FLAGS=""
COPY . .
RUN cargo build --release --locked --target "$(cat /target)" ${CARGO_FLAGS} \
    && cp "target/$(cat /target)/release/rerankd" /

FROM --platform=${BUILDPLATFORM} ${DEBIAN_IMAGE} AS onnxruntime
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
FROM --platform=${BUILDPLATFORM} ${DEBIAN_IMAGE} AS root
ARG TARGETARCH
RUN dpkg --add-architecture "${TARGETARCH}" \
    && apt-get update \
    && apt-get install --yes --no-install-recommends binutils ca-certificates "libstdc++6:${TARGETARCH}" \
    && rm -rf /var/lib/apt/lists/*
COPY --from=onnxruntime /onnxruntime /root/opt/rerankd
COPY --from=build /rerankd /src/LICENSE /root/opt/rerankd/
COPY docker/root.sh /
RUN sh /root.sh /root "${TARGETARCH}"

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
