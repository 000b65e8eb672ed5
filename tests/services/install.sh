# shellcheck shell=bash
# Installs what a fresh Debian or Ubuntu lacks: packages with apt, Rust, Kafka with Maven, and Node with
# npm.

KAFKA_VERSION=4.1.1
NODE_VERSION=22
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/chatmesh
KAFKA_JARS=$CACHE/kafka-$KAFKA_VERSION

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "run as root or install sudo, which is needed for: $*"
    fi
}

apt_updated=false
apt_refresh() {
    if ! $apt_updated; then
        as_root apt-get update -qq
        apt_updated=true
    fi
}

# Whether apt has a package of this name.
is_in_apt() { [[ $(apt-cache policy "$1" 2>/dev/null) == *'Candidate: '[0-9]* ]]; }

apt_install() {
    command -v apt-get >/dev/null || die "please install by hand: $* (there is no apt-get here)"
    apt_refresh
    say "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

install_packages() {
    local missing=()
    command -v gcc >/dev/null && command -v make >/dev/null && command -v g++ >/dev/null ||
        missing+=(build-essential)
    command -v perl >/dev/null || missing+=(perl)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    command -v redis-server >/dev/null || missing+=(redis-server)
    command -v redis-cli >/dev/null || missing+=(redis-tools)
    command -v curl >/dev/null || missing+=(curl)
    command -v kcat >/dev/null || missing+=(kcat)
    command -v nginx >/dev/null || [[ -x /usr/sbin/nginx ]] || missing+=(nginx-light)
    command -v promtool >/dev/null || missing+=(prometheus)
    if ! has_browser; then
        command -v apt-cache >/dev/null && apt_refresh
        # Ubuntu's packages only refer to snap packages.
        is_in_apt chromium-driver || die "please install Chromium or Chrome, and chromedriver, by hand"
        missing+=(chromium chromium-driver fonts-dejavu-core)
    fi
    has_java || missing+=("$(find_java_package)")
    [[ -d $KAFKA_JARS ]] || command -v mvn >/dev/null || missing+=(maven)
    [[ -d /etc/ssl/certs ]] || missing+=(ca-certificates)
    if ((${#missing[@]})); then
        apt_install "${missing[@]}"
    fi
    is_at_least "$(redis-server --version | sed -n 's/.* v=\([0-9.]*\) .*/\1/p')" 7 ||
        die "Redis 7 or newer is needed, and this one is older: $(redis-server --version)"
}

# Whether a browser and its WebDriver are installed.
has_browser() {
    command -v chromedriver >/dev/null || return 1
    command -v chromium >/dev/null || command -v google-chrome >/dev/null
}

# Prints a package with a JRE. Newer releases of the system do not have version 17.
find_java_package() {
    local package
    if command -v apt-cache >/dev/null; then
        apt_refresh >&2
        for package in openjdk-17-jre-headless openjdk-21-jre-headless openjdk-25-jre-headless; do
            if is_in_apt "$package"; then
                printf '%s\n' "$package"
                return
            fi
        done
    fi
    printf '%s\n' default-jre-headless
}

# Whether Java is new enough for the broker of Kafka 4, which needs 17.
has_java() {
    local version
    version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p') || return 1
    [[ -n $version ]] && ((version >= 17))
}

# is_at_least VERSION MINIMUM, both like 1.90 or 1.90.0.
is_at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

has_rust() {
    local have
    have=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) && is_at_least "$have" "$1"
}

install_rust() {
    local wanted candidate
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    if ! has_rust "$wanted"; then
        command -v apt-cache >/dev/null || die "please install Rust $wanted or newer (https://rustup.rs)"
        apt_refresh
        candidate=$(apt-cache policy cargo 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
        # Older packages of cargo have versions 0.x.
        if [[ $candidate == 1.* ]] && is_at_least "$candidate" "$wanted"; then
            apt_install cargo rustc rustfmt rust-clippy
        elif is_in_apt rustup; then
            apt_install rustup
            rustup default stable
        fi
        has_rust "$wanted" || die "cargo of Rust $wanted or newer is needed, and apt has none:" \
            "install it with rustup (https://rustup.rs) and run this again." \
            "Found: $(cargo --version 2>/dev/null || echo none)"
    fi
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        command -v rustup >/dev/null || die "please install rustfmt and clippy of this Rust"
        rustup component add rustfmt clippy
    fi
}

# The broker is a folder of jars. It is downloaded to a temporary folder and then renamed, so that an
# interrupted run leaves no incomplete folder.
install_kafka() {
    local staging
    [[ -d $KAFKA_JARS ]] && return
    mkdir -p "$CACHE"
    (
        flock 8
        [[ -d $KAFKA_JARS ]] && exit
        say "downloading Kafka $KAFKA_VERSION with Maven"
        staging=$(mktemp -d "$CACHE/download.XXXXXX")
        trap 'rm -rf "$staging"' EXIT
        cat >"$staging/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>chatmesh</groupId>
  <artifactId>test-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>$KAFKA_VERSION</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
POM
        mvn -q -B -f "$staging/pom.xml" dependency:copy-dependencies \
            -DoutputDirectory="$staging/jars" >&2 ||
            die "Maven could not download Kafka; see the lines above"
        mv -T "$staging/jars" "$KAFKA_JARS"
    ) 8>"$CACHE/lock"
}

# Whether this Node has the test runner and the WebSocket that the tests of the browser client need.
is_node_suitable() {
    local have
    have=$("$1" --version 2>/dev/null) && is_at_least "${have#v}" 20.10
}

# Sets TEST_NODE. If neither the system nor apt has a Node that is new enough, npm downloads the
# executable to the cache folder.
install_node() {
    local candidate machine staging
    TEST_NODE=node
    is_node_suitable node && return
    if command -v apt-cache >/dev/null; then
        apt_refresh
        candidate=$(apt-cache policy nodejs 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
        if [[ -n $candidate ]] && is_at_least "$candidate" 20.10; then
            apt_install nodejs
            return
        fi
    fi
    TEST_NODE=$CACHE/node-$NODE_VERSION/bin/node
    is_node_suitable "$TEST_NODE" && return
    command -v npm >/dev/null || apt_install npm
    case $(uname -m) in
        x86_64) machine=x64 ;;
        aarch64) machine=arm64 ;;
        *) die "please install Node 20.10 or newer by hand" ;;
    esac
    say "downloading Node $NODE_VERSION with npm"
    staging=$(mktemp -d "$CACHE/download.XXXXXX")
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$staging" \
        "node-linux-$machine@$NODE_VERSION" >&2 || die "npm could not download Node; see the lines above"
    rm -rf "$CACHE/node-$NODE_VERSION"
    mv -T "$staging/node_modules/node-linux-$machine" "$CACHE/node-$NODE_VERSION"
    rm -rf "$staging"
    is_node_suitable "$TEST_NODE" || die "the downloaded Node does not run on this machine"
}

install_fuzzer() {
    local missing=()
    command -v gcc >/dev/null && command -v make >/dev/null && command -v g++ >/dev/null ||
        missing+=(build-essential)
    command -v perl >/dev/null || missing+=(perl)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    if ((${#missing[@]})); then
        apt_install "${missing[@]}"
    fi
    install_rust
    if ! cargo fuzz --version >/dev/null 2>&1; then
        say "installing cargo-fuzz"
        cargo install --quiet --locked cargo-fuzz
    fi
}

install_all() {
    install_packages
    install_rust
    install_kafka
    install_node
}
