# `make` lists the targets. They need Go, and install PostgreSQL and Mosquitto
# from Debian's packages where those are missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ARGS ?=
FUZZTIME ?= 30s
TESTTIMEOUT ?= 20m
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PROGRAMS := crossfade fleet

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build ## flip tenants under load on private servers, then reconcile (ARGS="--duration 60s")
	@bin/crossfade demo $(ARGS)

.PHONY: test
test: ## everything that must pass: format, vet, staticcheck, tests under the race detector
	@.ci/deps race devices
	@$(MAKE) --no-print-directory lint
	go test -race -timeout $(TESTTIMEOUT) $$(go list ./... | grep -v /bridge/stage)
	go test -timeout $(TESTTIMEOUT) ./bridge/stage # one goroutine that searches: the race detector sees nothing and takes minutes

.PHONY: test-short
test-short: ## the tests alone, without the race detector
	@.ci/deps devices
	go test -timeout $(TESTTIMEOUT) ./...

.PHONY: bench
bench: deps build ## throughput as a ratio to ceilings measured in the same run
	@bin/crossfade bench $(ARGS)

.PHONY: soak
soak: ## flips, then what goes down to devices, on three instances that are killed and restarted (SOAK=10m each)
	@.ci/deps devices
	@CROSSFADE_SOAK=$(or $(SOAK),10m) go test -timeout 0 -count=1 -v -run 'TestSoak|TestFleetHears' ./bridge

.PHONY: model
model: ## the stage protocol searched further than the tests do
	@CROSSFADE_MODEL=full go test -timeout 0 -count=1 -v -run 'NoReachableState|EveryRule' ./bridge/stage

.PHONY: sim
sim: deps ## three instances simulated with random seeds (SIM=10m); CROSSFADE_SIM_SEED=n runs one seed again
	@CROSSFADE_SIM=$(or $(SIM),10m) go test -timeout 0 -count=1 -v -run 'TestSimulation$$' ./bridge

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (30s) each
	@.ci/fuzz $(FUZZTIME)

# Each program is moved into place complete, so that two makes at once, or one
# beside a running program, do not disturb each other.
.PHONY: build
build: ## bin/crossfade and bin/fleet
	@mkdir -p bin
	@for program in $(PROGRAMS); do \
		new=bin/.$$program.$$$$; \
		CGO_ENABLED=0 go build -trimpath -ldflags "-X main.version=$(VERSION)" -o $$new ./cmd/$$program || { rm -f $$new; exit 1; }; \
		mv -f $$new bin/$$program; \
	done

.PHONY: deps
deps: ## install PostgreSQL and Mosquitto where they are missing
	@.ci/deps

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@unformatted=$$("$$(go env GOROOT)/bin/gofmt" -l .); \
	if [ -n "$$unformatted" ]; then printf 'not formatted, run gofmt -w:\n%s\n' "$$unformatted" >&2; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

.PHONY: config-docs
config-docs: ## generate the configuration table from the code
	go generate ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
