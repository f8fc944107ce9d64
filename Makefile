# Everything runs as root, on Linux. Debian packages that a target needs are installed where they are missing.
SHELL       := /bin/bash
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PREFIX      ?= /usr/local
FUZZTIME    ?= 60s
FUZZREST    ?= 10s

# $(call need,PACKAGES) installs Debian packages unless they are all there.
need = dpkg --status $(1) >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(1); }

.PHONY: help build install image demo test lint e2e repro vm torture endurance fuzz conformance buildkit-suite bench
help:
	@echo "make build         ./kiln and ./kilnd, two static binaries"
	@echo "make install       kiln, its manual pages, and completion for shells, into PREFIX ($(PREFIX)) below DESTDIR"
	@echo "make image         an image of kiln for amd64 and arm64 in kiln's store, with IMAGE as further flags of kiln build"
	@echo "make demo          build an example, look at it, build it again"
	@echo "make test          vet, staticcheck, and the tests of every package"
	@echo "make e2e           real images from real package registries, and kiln's own; about twenty minutes"
	@echo "make repro         the same images in eight surroundings, as --reproducible promises; LONG=1 more of them, and 30 times"
	@echo "make vm            kiln on the kernel of Debian's cloud images, or on KERNELS, in a virtual machine; about two minutes. ARCH=arm64"
	@echo "make torture       hostile archives, faults, kills and full disks; LONG=1 for many rounds, and for large ones"
	@echo "make endurance     10000 builds by one kilnd, or BUILDS ($(BUILDS)): what it takes does not grow"
	@echo "make fuzz          every fuzz target, for FUZZTIME ($(FUZZTIME)) or FUZZREST ($(FUZZREST))"
	@echo "make bench         kiln beside the other builders of the machine, with BENCH as arguments; about half an hour"
	@echo "make buildkit-suite  BuildKit's own integration tests against kilnd; about an hour. SUITES='client' for one of them"
	@echo "make conformance   the cases of the directory CONFORM, built and compared"

build:
	CGO_ENABLED=0 go build -trimpath -o kiln ./cmd/kiln
	CGO_ENABLED=0 go build -trimpath -o kilnd ./cmd/kilnd

SHARE = $(DESTDIR)$(PREFIX)/share
install: build
	install -D -m 755 kiln $(DESTDIR)$(PREFIX)/bin/kiln
	install -D -m 755 kilnd $(DESTDIR)$(PREFIX)/bin/kilnd
	./kiln man $(SHARE)/man
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	./kiln completion bash > $(SHARE)/bash-completion/completions/kiln
	./kiln completion zsh > $(SHARE)/zsh/site-functions/_kiln
	./kiln completion fish > $(SHARE)/fish/vendor_completions.d/kiln.fish

# IMAGE are flags of kiln build, such as "-t registry.example/kiln:v1 --push".
image: build
	@$(call need,ca-certificates mmdebstrap)
	image/build ./kiln $(IMAGE)

demo: build
	@$(call need,busybox-static)
	@example/demo ./kiln

test: lint
	@$(call need,busybox-static docker-registry e2fsprogs fish git-lfs jq man-db mandoc openssh-client openssh-server qemu-user-static skopeo strace tmux uidmap umoci xfsprogs xz-utils zsh zstd)
	go test -timeout 1h $$(go list ./... | grep -v /torture$$)
	go test -timeout 1h -count=1 ./torture # it builds kiln itself, which go test's cache does not know

lint:
	go vet ./...
	go vet -tags e2e ./e2e ./e2e/caches
	go vet -tags vm ./e2e/vm
	go run $(STATICCHECK) ./...
	go run $(STATICCHECK) -tags e2e ./e2e ./e2e/caches
	go run $(STATICCHECK) -tags vm ./e2e/vm

# Servers that tests of caches talk to.
TOOLS     := $(CURDIR)/.tools
# cosign verifies what kiln signs, and signs what kiln verifies.
COSIGN    := github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5
VERSITYGW := github.com/versity/versitygw/cmd/versitygw@v1.8.0
AZURITE   := azurite@3.37.0
e2e: build
	@$(call need,busybox-static docker-registry mmdebstrap openssh-client podman qemu-user-static skopeo umoci)
	GOBIN=$(TOOLS) GOFLAGS=-buildvcs=false go install $(VERSITYGW)
	GOBIN=$(TOOLS) GOFLAGS=-buildvcs=false go install $(COSIGN)
	@# Docker's clients drive kilnd, and buildx is asked what it reads of the images that kiln makes. compose wants to know buildx' version.
	cd e2e/clients && go build -buildvcs=false -trimpath -o $(TOOLS)/buildx \
	    -ldflags "-X github.com/docker/buildx/version.Version=$$(go list -m -f '{{.Version}}' github.com/docker/buildx)" github.com/docker/buildx/cmd/buildx
	cd e2e/clients && go build -buildvcs=false -trimpath -o $(TOOLS)/docker-compose github.com/docker/compose/v5/cmd
	cd test/buildkit && go build -trimpath -o $(TOOLS)/buildctl github.com/moby/buildkit/cmd/buildctl
	@command -v npm >/dev/null || { $(call need,nodejs npm); }
	npm install --silent --no-audit --no-fund --prefix $(TOOLS) $(AZURITE)
	KILN=$(CURDIR)/kiln TOOLS=$(TOOLS) go test -tags e2e -count=1 -timeout 2h -v -skip '^TestReproducible$$' ./e2e ./e2e/caches

# CONFORM holds conformance/cases, of which some are built as well.
repro: build
	@$(call need,busybox-static docker-registry git mmdebstrap python3 uidmap util-linux xfsprogs)
	KILN=$(CURDIR)/kiln CONFORM=$(abspath $(CONFORM)) KILN_LONG=$(LONG) go test -tags e2e -count=1 -timeout 2h -v -run '^TestReproducible$$' ./e2e

# ARCH is amd64, or arm64, which takes about four minutes; there the packages' own tests run only with TESTS=1. KERNELS
# are directories of unpacked kernel packages, separated by colons; without it Debian's is downloaded.
vm:
	@$(call need,busybox-static e2fsprogs $(if $(filter arm64,$(ARCH)),qemu-system-arm,qemu-system-x86) xz-utils)
	ARCH=$(ARCH) KERNELS=$(KERNELS) TESTS=$(TESTS) go test -tags vm -count=1 -timeout 6h -v ./e2e/vm

# LONG is the number of rounds of what is done at random, or 1 for a thousand.
torture:
	@$(call need,busybox-static e2fsprogs strace xfsprogs)
	KILN_TORTURE=$(if $(filter 1,$(LONG)),1000,$(LONG)) go test -count=1 -timeout $(if $(LONG),24h,1h) -v ./torture

BUILDS ?= 10000
endurance:
	KILND_BUILDS=$(BUILDS) go test -timeout 0 -count=1 -v -run '^TestStays$$' ./cmd/kilnd

fuzz:
	@test/fuzz $(FUZZTIME) $(FUZZREST)

# BENCH are arguments of the program, such as -workload=edit or -growth: see bench/README.md.
bench: build
	@$(call need,busybox-static docker-registry $(if $(findstring -cache,$(BENCH)),mmdebstrap runc))
	go run ./bench -kiln ./kiln $(BENCH)

# CONFORM holds conformance/conform, conformance/cases and images/with-registry. The number of cases that pass as root, and as an
# ordinary user, may only rise: see conformance.passes.
conformance: build
	@test -n "$(CONFORM)" || { echo "make conformance CONFORM=DIRECTORY: the directory with the cases is not named"; exit 2; }
	@$(call need,busybox-static docker-registry jq python3 uidmap xz-utils zstd)
	@.ci/conformance ./kiln "$(CONFORM)" conformance.passes

# SUITES are of those that test/buildkit/run has. What passes may only become more: see test/buildkit/passes.
SUITES ?= dockerfile-builtin dockerfile-client dockerfile-gateway client
buildkit-suite:
	@$(call need,busybox-static curl docker-registry git gnupg openssh-client openssl)
	cd test/buildkit && go vet . ./nothing && go test .
	@failed=; for suite in $(SUITES); do test/buildkit/run $${suite/-/ } || failed="$$failed $$suite"; done; \
	    [ -z "$$failed" ] || { echo "buildkit-suite: FAILED:$$failed"; exit 1; }
