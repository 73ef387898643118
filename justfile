# Each recipe calls one program; what there is to know is in that program.

# List the recipes.
default:
    @just --list --unsorted

# Set the machine up, build the release, start a server and run hello world.
quickstart *args:
    deploy/quickstart {{args}}

# Serve the mesh from a debug build, in the foreground.
run *args: build
    cargo run --quiet -p sandmesh -- serve {{args}}

# The same on an empty data directory that is not kept.
clean-run *args: build
    SANDMESH_AGENT__ON_SHUTDOWN=destroy cargo run --quiet -p sandmesh -- serve --data-dir "$(mktemp -d)" {{args}}

# Build the program and the executor for debugging.
build:
    cargo build -p sandmesh -p sandmesh-executor

# Build the release: the program and the static executor.
release:
    deploy/build

# Build the static executor alone.
executor:
    deploy/build --executor-only

# Build the static executor for debugging, which the tests of containers start.
static-executor:
    bash -c '. deploy/lib.sh && build_static_executor'

# Start Sandmesh by Docker Compose: roles, database, object store.
compose *args:
    deploy/compose/up {{args}}

# Test that on an engine of its own, with what `just build` and `just static-executor` made.
compose-test *args:
    deploy/compose/test {{args}}

# Install what tests need, check everything, run every test: what CI runs.
test:
    deploy/test

# Install what tests need and stop there.
setup-tests:
    deploy/test --setup-only

# Run chosen tests, for example `just t -p sandmesh-session lifecycle`.
t *args:
    cargo nextest run {{args}}

# Check without running tests: format, lints, contract, who depends on whom.
check: fmt-check clippy lint-proto architecture

# Check the format.
fmt-check:
    cargo fmt --all --check

# Lint the code.
clippy:
    cargo clippy --locked --workspace --all-targets -- -D warnings

# Lint the contract.
lint-proto:
    .venv/bin/buf lint

# Check who depends on whom.
architecture:
    cargo nextest run --locked -p sandmesh --test architecture

# Measure every goal of speed and size against its baseline, on release builds.
bench *args: executor
    cargo bench --locked -p sandmesh --bench mesh -- {{args}}

# Keep a server at full load for ten minutes, and look whether anything grows or is left behind.
soak *args: executor
    cargo bench --locked -p sandmesh --bench mesh -- soak {{args}}

# Kill the parts of a mesh at random under load and check every promise; `--kills N --seed S` for another campaign.
chaos *args: build static-executor
    cargo bench --locked --profile dev -p sandmesh --bench chaos -- {{args}}

# Fill a database with 10,000 sessions and a million executions, and measure how they are read.
bench-database *args: executor
    cargo bench --locked -p sandmesh --bench database -- {{args}}

# Live through a day of 10,000 nodes with the real scheduler; `--decisions 10000` only measures decisions.
simulate *args:
    cargo bench --locked -p sandmesh-scheduler --features simulation --bench simulate -- {{args}}

# Attack a server started for this with every case of the suite, and print the table.
attack *args: build
    cargo run --quiet -p sandmesh -- doctor --attack --own-server {{args}}

# Give every fuzz target so many seconds; `just fuzz 3600 any_request` gives one an hour.
fuzz seconds="60" target="fuzz::":
    BOLERO_RANDOM_TEST_TIME_MS={{seconds}}000 BOLERO_RANDOM_ITERATIONS=1000000000 \
        cargo test --locked --no-fail-fast -p sandmesh-executor -p sandmesh-gateway {{target}}

# Print every setting with its value.
dump-config:
    cargo run --quiet -p sandmesh -- serve --dump-config

# Generate clients from proto/ into gen/.
generate:
    .venv/bin/buf generate
