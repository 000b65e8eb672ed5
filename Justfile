# Recipes for people. `just` lists them.

env_file := if path_exists(".env") == "true" { ".env" } else { ".env.example" }
export ENV_FILE := env_file
compose := "docker compose --profile dependencies --profile backend --profile monitoring"

@_default:
    just --list --unsorted

# Build the image, start everything, wait until healthy, print the addresses
up: (_up "--build")

# Start everything without building anew
start-all: (_up "")

_up build: _collect-logs-folder
    {{ compose }} up --detach --wait --wait-timeout 600 {{ build }}
    @deploy/collect-logs
    @just _addresses

# Start Kafka and Redis only
start-dependencies: _collect-logs-folder
    docker compose --profile dependencies up --detach --wait --wait-timeout 300
    @deploy/collect-logs
    @echo "Kafka  localhost:9092"
    @echo "Redis  localhost:6379"

# Start gateways, worker, relay and nginx (they wait for Kafka and Redis)
start-backend: _collect-logs-folder
    docker compose --profile backend up --detach --wait --wait-timeout 600
    @deploy/collect-logs

# Start Prometheus and Grafana
start-monitoring: _collect-logs-folder
    docker compose --profile monitoring up --detach --wait --wait-timeout 300
    @deploy/collect-logs

# Follow the logs of all containers, or of those named
logs *services:
    {{ compose }} logs --follow --tail 100 {{ services }}

# Stop everything and keep the data
stop-all:
    {{ compose }} stop

# Remove containers, their data, the built image and docker-logs/
clean:
    {{ compose }} down --volumes --remove-orphans
    -docker image rm "chatmesh:${CHATMESH_TAG:-local}"
    rm -rf docker-logs

# Run every check and test, or the tests named
test *names:
    tests/run {{ names }}

# Check format and lints
lint:
    cargo fmt --all --check
    cargo clippy --all-targets -- -D warnings

# Measure the parts of a message's way on the processor, or those whose names contain NAME
bench name="":
    cargo bench --bench parts -- {{ name }}

# Compare chatmesh with the bare chain below it, on a real Kafka and Redis of its own
bench-e2e *flags:
    #!/usr/bin/env bash
    set -euo pipefail
    eval "$(tests/run --services)"
    cargo bench --bench end_to_end -- {{ flags }}

# Connect many clients to a running gateway (--help lists what it can do)
load-test *flags:
    cargo run --release --quiet -- load-test {{ flags }}

# Run everything in one process on this machine, without containers
demo:
    cargo run --release -- all-in-one --ephemeral

_collect-logs-folder:
    @mkdir -p docker-logs

_addresses:
    #!/usr/bin/env bash
    set -euo pipefail
    set_in_file() { grep -Eq "^(export )?$1=.*[^[:space:]\"']" "$ENV_FILE"; }
    echo
    echo "Settings     $ENV_FILE"
    echo "Chat         http://localhost:8080/"
    echo "WebSocket    ws://localhost:8080/ws?token=TOKEN&userid=USER"
    echo "Health       http://localhost:8080/health"
    echo "Prometheus   http://localhost:9090/"
    echo "Grafana      http://localhost:3000/  (admin/admin)"
    echo "Logs         docker-logs/, just logs"
    if ! set_in_file OPENAI_API_KEY && ! set_in_file OPENAI_BASE_URL; then
        echo
        echo "The demo model answers: it only repeats what it is told. For a real one set OPENAI_API_KEY or"
        echo "OPENAI_BASE_URL in .env (begin with a copy of .env.example) and run just up again."
    fi
    if grep -Eq "^TOKEN_ENDPOINT=[\"']?open" "$ENV_FILE"; then
        echo
        echo "Warning: TOKEN_ENDPOINT=open gives anybody anybody's token. A token for alice:"
        echo "  curl -X POST 'http://localhost:8080/token?userid=alice'"
    fi
