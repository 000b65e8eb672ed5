# shellcheck shell=bash
# What a fresh Debian or Ubuntu lacks: packages by apt, Rust, Kafka by Maven, and Node by npm.

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
        die "needs to be root, or sudo, for: $*"
    fi
}

apt_updated=false
apt_refresh() {
    if ! $apt_updated; then
        as_root apt-get update -qq
        apt_updated=true
    fi
}

# Whether apt could install it.
apt_has() { [[ $(apt-cache policy "$1" 2>/dev/null) == *'Candidate: '[0-9]* ]]; }

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
    if ! browser_works; then
        command -v apt-cache >/dev/null && apt_refresh
        # Ubuntu's are only pointers to snap packages.
        apt_has chromium-driver || die "please install Chromium or Chrome, and chromedriver, by hand"
        missing+=(chromium chromium-driver fonts-dejavu-core)
    fi
    java_works || missing+=("$(java_package)")
    [[ -d $KAFKA_JARS ]] || command -v mvn >/dev/null || missing+=(maven)
    [[ -d /etc/ssl/certs ]] || missing+=(ca-certificates)
    if ((${#missing[@]})); then
        apt_install "${missing[@]}"
    fi
    at_least "$(redis-server --version | sed -n 's/.* v=\([0-9.]*\) .*/\1/p')" 7 ||
        die "needs Redis 7 or newer; this system's is older: $(redis-server --version)"
}

# A browser, and what drives it.
browser_works() {
    command -v chromedriver >/dev/null || return 1
    command -v chromium >/dev/null || command -v google-chrome >/dev/null
}

# Releases carry different ones; the newer ones have no 17 any more.
java_package() {
    local package
    if command -v apt-cache >/dev/null; then
        apt_refresh >&2
        for package in openjdk-17-jre-headless openjdk-21-jre-headless openjdk-25-jre-headless; do
            if apt_has "$package"; then
                printf '%s\n' "$package"
                return
            fi
        done
    fi
    printf '%s\n' default-jre-headless
}

# Kafka 4's broker needs Java 17.
java_works() {
    local version
    version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p') || return 1
    [[ -n $version ]] && ((version >= 17))
}

# at_least HAVE WANTED, both like 1.90 or 1.90.0.
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

rust_works() {
    local have
    have=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) && at_least "$have" "$1"
}

install_rust() {
    local wanted candidate
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    if ! rust_works "$wanted"; then
        command -v apt-cache >/dev/null || die "please install Rust $wanted or newer (https://rustup.rs)"
        apt_refresh
        candidate=$(apt-cache policy cargo 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
        # The cargo of older packages is numbered 0.x.
        if [[ $candidate == 1.* ]] && at_least "$candidate" "$wanted"; then
            apt_install cargo rustc rustfmt rust-clippy
        elif apt_has rustup; then
            apt_install rustup
            rustup default stable
        fi
        rust_works "$wanted" || die "needs cargo of Rust $wanted or newer, and apt has none:" \
            "install it with rustup (https://rustup.rs), then run this again." \
            "Found: $(cargo --version 2>/dev/null || echo none)"
    fi
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        command -v rustup >/dev/null || die "please install rustfmt and clippy of this Rust"
        rustup component add rustfmt clippy
    fi
}

# The broker is a folder of jars. It is downloaded beside its place and renamed, so that an
# interrupted run leaves no half folder behind.
install_kafka() {
    local staging
    [[ -d $KAFKA_JARS ]] && return
    mkdir -p "$CACHE"
    (
        flock 8
        [[ -d $KAFKA_JARS ]] && exit
        say "getting Kafka $KAFKA_VERSION by Maven"
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
            die "Maven could not get Kafka; the lines above say why"
        mv -T "$staging/jars" "$KAFKA_JARS"
    ) 8>"$CACHE/lock"
}

# The browser client's tests need the test runner of Node 20 and its WebSocket.
node_works() {
    local have
    have=$("$1" --version 2>/dev/null) && at_least "${have#v}" 20.10
}

# Sets TEST_NODE. Where the system has none that is new enough, and apt neither: by npm, as one
# executable beside Kafka.
install_node() {
    local candidate machine staging
    TEST_NODE=node
    node_works node && return
    if command -v apt-cache >/dev/null; then
        apt_refresh
        candidate=$(apt-cache policy nodejs 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
        if [[ -n $candidate ]] && at_least "$candidate" 20.10; then
            apt_install nodejs
            return
        fi
    fi
    TEST_NODE=$CACHE/node-$NODE_VERSION/bin/node
    node_works "$TEST_NODE" && return
    command -v npm >/dev/null || apt_install npm
    case $(uname -m) in
        x86_64) machine=x64 ;;
        aarch64) machine=arm64 ;;
        *) die "please install Node 20.10 or newer by hand" ;;
    esac
    say "getting Node $NODE_VERSION by npm"
    staging=$(mktemp -d "$CACHE/download.XXXXXX")
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$staging" \
        "node-linux-$machine@$NODE_VERSION" >&2 || die "npm could not get Node; the lines above say why"
    rm -rf "$CACHE/node-$NODE_VERSION"
    mv -T "$staging/node_modules/node-linux-$machine" "$CACHE/node-$NODE_VERSION"
    rm -rf "$staging"
    node_works "$TEST_NODE" || die "the Node that npm brought does not run here"
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
