# The only door: everything that people and CI do goes through these targets. `make help` lists
# them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The targets use the same two cores and the same ports of servers.
.NOTPARALLEL:

# hashicorpmetrics makes hashicorp/raft use the maintained metrics package.
TAGS := hashicorpmetrics
STATICCHECK := v0.8.1
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)

# Inputs of each fuzz target, of slow ones fewer: minutes for each. `make fuzz INPUTS=10000000` is a
# longer search.
INPUTS := 1000000
# How often `make bench` measures each kind of change.
ROUNDS := 3
# More for the relay's benchmark: `make bench RELAY="--holdfast old=../old --holdfast new=."`.
RELAY :=
# Which lines of the failure table `make faults` runs: all, or a part of their names.
FAULTS := all
# Which tool builds images, and its flags.
IMAGE_TOOL := buildah
IMAGE := holdfast

GOTEST := go test -tags $(TAGS)
# -p 1: tests of two packages side by side would share two cores with real servers.
TEST_FLAGS := -p 1 -timeout 40m
# With CI=true a test that needs PostgreSQL fails and does not skip.
NEED_ALL := CI=true HOLDFAST_REQUIRE_POSTGRES=1

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install PostgreSQL and the tools that tests and demo need (as root, on Debian)
	@scripts/setup.sh tools

# What runs the fault lab says at once that it needs root, and not after half an hour.
.PHONY: setup-demo setup-test setup-bench setup-18
setup-demo:
	@scripts/setup.sh demo
setup-test:
	@scripts/setup.sh test
setup-bench:
	@scripts/setup.sh bench
# What the last step of `make test` needs of the network is fetched first.
setup-18:
	@scripts/matrix.sh --prepare 18

.PHONY: build
build: ## build bin/holdfast, static
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags $(TAGS) \
	    -ldflags '-s -w -X main.version=$(VERSION)' -o bin/holdfast ./cmd/holdfast

.PHONY: demo
demo: setup-demo build ## three nodes with PostgreSQL, a load, and failovers to watch
	@bin/holdfast demo $(DEMO)

.PHONY: test
test: setup-test setup-18 lint race unit-rest fuzz-short e2e e2e-18 ## all that CI runs (as root)

.PHONY: unit
unit: ## tests without the end-to-end ones
	$(NEED_ALL) $(GOTEST) $(TEST_FLAGS) -skip '^TestE2E' ./...

# What `make race` leaves out: the rest of `make unit` would only run a second time.
.PHONY: unit-rest
unit-rest:
	$(NEED_ALL) $(GOTEST) $(TEST_FLAGS) ./bench/...
	@for p in election proxy; do \
	    tests=$$(scripts/slow-tests.sh $$p); \
	    $(NEED_ALL) $(GOTEST) $(TEST_FLAGS) -run "$$tests" ./$$p; done

# Schedules of `make simulate` and the seed of the first: RUNS=1000 is half a minute.
RUNS := 1000000
SEED := 1

.PHONY: simulate
simulate: ## RUNS seeded schedules of lease, decision and changes under faults, one core, hours
	$(GOTEST) ./election -run '^TestControllerSimulation$$' -count 1 -timeout 24h -v \
	    -sim.runs=$(RUNS) -sim.seed=$(SEED)

# Two packages at a time: most of the time tests wait for servers, and one takes 15 minutes more.
.PHONY: race
race: ## the same under the race detector, without the slow ones
	$(NEED_ALL) $(GOTEST) -race -short $(TEST_FLAGS) -p 2 ./pgwire/... ./proxy/... ./election/... \
	    ./config/... ./cmd/holdfast

.PHONY: fuzz
fuzz: ## each fuzz target with INPUTS inputs
	@scripts/fuzz.sh $(INPUTS) -tags $(TAGS)

.PHONY: fuzz-short
fuzz-short:
	@scripts/fuzz.sh 50000 -tags $(TAGS)

.PHONY: e2e
e2e: setup-test build ## three nodes, pgbench, failovers and a switchover (as root)
	$(NEED_ALL) $(GOTEST) ./cmd/holdfast -run '^TestE2E' -count 1 -timeout 40m -v

# Failover slots want a server of 17 or newer, so that their test skips itself in `make e2e`.
.PHONY: e2e-18
e2e-18: setup-test ## the end-to-end tests of MATRIX on PostgreSQL 18, in its Debian (as root)
	@scripts/matrix.sh 18 '$(MATRIX)' ''

.PHONY: faults
faults: setup-test build ## the failure table in network namespaces (as root): bench/results
	$(NEED_ALL) HOLDFAST_BINARY=$(CURDIR)/bin/holdfast HOLDFAST_FAULTS="$(FAULTS)" \
	    HOLDFAST_FAULTS_REPORT=$(CURDIR)/bench/results \
	    $(GOTEST) ./cmd/holdfast -run '^TestE2EFaults$$' -count 1 -timeout 90m -v

# Versions of PostgreSQL beside this machine's that Debian releases carry; 14 and 16 are in none.
VERSIONS := 13 17 18
MATRIX := ^TestE2E(Operator|Members|Witness|Sync[A-Za-z]*|Adopt[A-Za-z]*|Slots|Sidecar)?$$
# Those of the proxy that depend most on what a server says and does.
MATRIX_PROXY := ^Test(CutAnywhere|AsDirectly|Acknowledged|HeldSync|OldBackend|XID|Question|$\
    Carried|Protocol|Negotiat|Cancel|Replication|BaseBackup|Auth|Unknown|Users|Groups|$\
    Databases|Rules|Server|TLS|GSS|SearchPath|Reset|Reuse|Hostile|Lying|ChangedRoles|$\
    TemporaryTables|RandomTemporary|OnCommit|State|Statement|String|Unnamed|Replay|$\
    NameThat|Setting|Fatal)

.PHONY: matrix
matrix: setup ## agent, proxy and end-to-end tests on PostgreSQL 13, 17 and 18
	@for v in $(VERSIONS); do \
	    scripts/matrix.sh $$v '$(MATRIX)' '^TestAgent' '$(MATRIX_PROXY)' || exit 1; done

# At how many messages of each conversation `make survives` tries what restarts the server; 0: all.
SAMPLE := 6

.PHONY: survives
survives: setup ## docs/what-survives.md, from a real server: half an hour; SAMPLE=0: many
	$(NEED_ALL) $(GOTEST) ./proxy -run '^TestWhatSurvives$$' -count 1 -timeout 10h \
	    -survive.sample=$(SAMPLE) -survive.out=$(CURDIR)/docs/what-survives.md

# How often the primary changes under each driver; `make ledger` has its own number.
CHANGES := 24

# Where the suites are fetched to: a directory that the servers' user can read.
SUITES := /var/tmp/holdfast-suites
# Which of them run: all, or a part of their names.
SUITE :=

.PHONY: corpus
corpus: setup ## the classifier and PostgreSQL's own parser on its regression files (as root)
	@scripts/suites.sh $(SUITES) sql
	HOLDFAST_SQL_CORPUS=$(SUITES)/postgresql/src/test/regress/sql $(NEED_ALL) \
	    $(GOTEST) ./pgwire/oracletest -run '^TestDirectory$$' -count 1 -timeout 30m -v

# Needs the database of known holes from the network; docs/security.md has what is known.
.PHONY: vuln
vuln: ## known holes in Go and in the modules that are built in
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 -tags $(TAGS) ./...

.PHONY: suites
suites: setup ## drivers' own tests and PostgreSQL's, directly and through the proxy (as root)
	@scripts/suites.sh $(SUITES)
	$(NEED_ALL) $(GOTEST) ./proxy -run '^TestSuites$$/$(SUITE)' -count 1 -timeout 90m -v \
	    -suites.dir=$(SUITES) | grep --line-buffered -E '^ *(---|suites_test|FAIL|ok)'

.PHONY: drivers
drivers: ## common drivers under kills and switchovers (docs/drivers.md); pg comes from npm
	@scripts/setup.sh drivers
	$(NEED_ALL) HOLDFAST_DRIVERS=all $(GOTEST) ./proxy -run '^TestDrivers$$' -count 1 \
	    -timeout 30m -v -drivers.changes=$(CHANGES) \
	    | grep --line-buffered -E '^ *(---|drivers_test|FAIL|ok)'

.PHONY: ledger
ledger: CHANGES := 200
ledger: setup-demo build ## CHANGES faults under writes of every kind, half an hour: bin/ledger.json
	@bin/holdfast demo --plain --interval 2s --changes $(CHANGES) --report bin/ledger.json

.PHONY: bench
bench: setup-bench build ## micro-benchmarks, the relay beside its peers, time without a commit
	$(GOTEST) -run '^$$' -bench . -benchmem ./...
	@mkdir -p bin
	go run -tags $(TAGS) ./bench relay --binary bin/holdfast $(RELAY) \
	    --out bin/relay.json --html bin/relay.html
	go run -tags $(TAGS) ./bench failover --binary bin/holdfast --rounds $(ROUNDS)

.PHONY: bench-quick
bench-quick: setup-bench build ## the relay beside its peers, in under three minutes
	go run -tags $(TAGS) ./bench relay --quick --binary bin/holdfast $(RELAY) \
	    --out bin/relay.json --html bin/relay.html

.PHONY: cover
cover: setup ## coverage of the tests, by function, in bin/cover.txt and bin/cover.html
	@mkdir -p bin
	$(NEED_ALL) $(GOTEST) $(TEST_FLAGS) -skip '^TestE2E' -coverprofile bin/cover.out ./...
	go tool cover -func bin/cover.out > bin/cover.txt
	go tool cover -html bin/cover.out -o bin/cover.html
	@tail -1 bin/cover.txt

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@scripts/lint.sh $(STATICCHECK) -tags $(TAGS)

.PHONY: tidy
tidy: ## the limits of CONTRIBUTING.md and the import rules
	$(GOTEST) ./cmd/holdfast -run '^(TestTidy|TestArch)' -count 1

.PHONY: golden
golden: ## write the recorded files of tests anew; read the difference before you commit it
	for dir in $$(grep -rl 'flag.Bool("rewrite"' --include='*_test.go' . | xargs -n 1 dirname \
	    | sort -u); do $(GOTEST) -count 1 "$$dir" -rewrite; done
	git --no-pager diff --stat

.PHONY: image
image: ## build the images holdfast and holdfast-database (docs/image.md)
	$(IMAGE_TOOL) build $(IMAGE_FLAGS) --build-arg VERSION=$(VERSION) \
	    --target holdfast -t $(IMAGE):$(VERSION) .
	$(IMAGE_TOOL) build $(IMAGE_FLAGS) --build-arg VERSION=$(VERSION) \
	    --target database -t $(IMAGE)-database:$(VERSION) .

.PHONY: image-local
image-local: ## the same without a registry, on a base made by debootstrap (as root)
	@scripts/image-local.sh $(VERSION)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
