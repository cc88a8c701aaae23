#!/bin/sh
# Prepares the compilers of the machine that builds for the architecture given, and writes its name in Rust to
# /target. Nothing is emulated: the compilers run on the machine that builds.
set -eu
case "$1" in
    amd64) machine=x86_64 package=x86-64 ;;
    arm64) machine=aarch64 package=aarch64 ;;
    *) echo "no ONNX Runtime is pinned for '$1'" >&2; exit 1 ;;
esac
target=$machine-unknown-linux-gnu
echo "$target" > /target
if [ "$(dpkg --print-architecture)" = "$1" ]; then exit; fi
if ! command -v "$machine-linux-gnu-gcc" > /dev/null; then
    apt-get update
    apt-get install --yes --no-install-recommends "gcc-$package-linux-gnu" "libc6-dev-$1-cross"
    rm -rf /var/lib/apt/lists/*
fi
if [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then rustup target add "$target"; fi
