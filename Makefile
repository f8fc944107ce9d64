# Everything runs as root, on Linux. Debian packages that a target needs are installed where they are missing.
SHELL       := /bin/bash
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 60s

# $(call need,PACKAGES) installs Debian packages unless they are all there.
need = dpkg --status $(1) >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(1); }

.PHONY: help build demo test lint e2e fuzz conformance bench
help:
	@echo "make build         ./kiln, one static binary"
	@echo "make demo          build an example, look at it, build it again"
	@echo "make test          vet, staticcheck, and the tests of every package"
	@echo "make e2e           real images from real package registries, about ten minutes"
	@echo "make fuzz          every fuzz target for FUZZTIME ($(FUZZTIME))"
	@echo "make bench         kiln beside the other builders of the machine, with BENCH as arguments; about half an hour"
	@echo "make conformance   the cases of the directory CONFORM, built and compared"

build:
	CGO_ENABLED=0 go build -trimpath -o kiln ./cmd/kiln

demo: build
	@$(call need,busybox-static)
	@example/demo ./kiln

test: lint
	@$(call need,busybox-static docker-registry jq openssh-client openssh-server skopeo umoci xz-utils zstd)
	go test ./...

lint:
	go vet ./...
	go vet -tags e2e ./e2e
	go run $(STATICCHECK) ./...
	go run $(STATICCHECK) -tags e2e ./e2e

e2e: build
	@$(call need,busybox-static docker-registry mmdebstrap qemu-user-static skopeo umoci)
	KILN=$(CURDIR)/kiln go test -tags e2e -count=1 -timeout 25m -v ./e2e

# go test takes one fuzz target of one package at a time.
fuzz:
	@set -e; for file in $$(grep -rl --include='*_test.go' '^func Fuzz' . | sort); do \
	    for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$file); do \
	        echo "go test $$(dirname $$file) -fuzz=^$$target\$$"; \
	        go test $$(dirname $$file) -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME); \
	    done; \
	done

# BENCH are arguments of the program, such as -workload=edit or -growth: see bench/README.md.
bench: build
	@$(call need,busybox-static docker-registry)
	go run ./bench -kiln ./kiln $(BENCH)

# CONFORM holds conformance/conform, conformance/cases and images/with-registry. The number of cases that pass may only
# rise: see conformance.passes.
conformance: build
	@test -n "$(CONFORM)" || { echo "make conformance CONFORM=DIRECTORY: the directory with the cases is not named"; exit 2; }
	@$(call need,busybox-static docker-registry jq python3 xz-utils zstd)
	@.ci/conformance ./kiln "$(CONFORM)" conformance.passes
