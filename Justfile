# Recipes for people. `just` lists them.

env_file := if path_exists(".env") == "true" { ".env" } else { ".env.example" }
export ENV_FILE := env_file
compose := "docker compose --profile dependencies --profile backend --profile monitoring"

@_default:
    just --list --unsorted

# Build the image, start everything, wait until healthy, print the addresses
up: (_up "--build")

# Start everything without rebuilding the image
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

# Start gateways, worker, relay and nginx (they wait until Kafka and Redis are reachable)
start-backend: _collect-logs-folder
    docker compose --profile backend up --detach --wait --wait-timeout 600
    @deploy/collect-logs

# Start Prometheus and Grafana
start-monitoring: _collect-logs-folder
    docker compose --profile monitoring up --detach --wait --wait-timeout 300
    @deploy/collect-logs

# Follow the logs of all containers, or of the given services
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

# Run all checks and tests, or only the given tests
test *names:
    tests/run {{ names }}

# Check formatting and lints
lint:
    cargo fmt --all --check
    cargo clippy --all-targets -- -D warnings

# Run the micro-benchmarks, or those whose names contain NAME
bench name="":
    cargo bench --bench parts -- {{ name }}

# Run the end-to-end benchmark against bare Kafka and Redis as the baseline, with its own services
bench-e2e *flags:
    #!/usr/bin/env bash
    set -euo pipefail
    eval "$(tests/run --services)"
    cargo bench --bench end_to_end -- {{ flags }}

# Run a load test against a running gateway (--help lists the options)
load-test *flags:
    cargo run --release --quiet -- load-test {{ flags }}

# Run all roles in one process, without containers
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
        echo "The demo model answers: it only repeats the message. For a real model set OPENAI_API_KEY or"
        echo "OPENAI_BASE_URL in .env (start with a copy of .env.example) and run just up again."
    fi
    if grep -Eq "^TOKEN_ENDPOINT=[\"']?open" "$ENV_FILE"; then
        echo
        echo "Warning: TOKEN_ENDPOINT=open issues a token for any user to any caller. A token for alice:"
        echo "  curl -X POST 'http://localhost:8080/token?userid=alice'"
    fi
