# shellcheck shell=bash
# What the scripts of this directory share: progress, packages, versions, build. Sourced, never run.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
began=$SECONDS

# step WHAT WHY USUALLY: says what starts now, why, and how long it usually takes.
step() {
  printf '\n==> [%3ds] %s\n' $((SECONDS - began)) "$1"
  printf '    why: %s; usually: %s\n' "$2" "$3"
}

note() { printf '    %s\n' "$*"; }

die() {
  printf '\nerror: %s\n' "$1" >&2
  shift
  if (($#)); then printf '       %s\n' "$@" >&2; fi
  exit 1
}

# bounded SECONDS COMMAND...: no step may hang. The command keeps the terminal, so Ctrl-C works.
bounded() {
  local limit=$1 code=0
  shift
  timeout --foreground -k 10 "$limit" "$@" || code=$?
  if ((code == 124)); then printf '    gave up after %s s: %s\n' "$limit" "$*" >&2; fi
  return "$code"
}

# as_root COMMAND...: directly as root, otherwise through sudo; asks for a password only on a terminal.
as_root() {
  if ((EUID == 0)); then
    "$@"
  elif ! command -v sudo >/dev/null; then
    die "\`$*\` needs root, and there is no sudo" "run this script as root, or install sudo"
  elif [[ -t 0 ]]; then
    sudo "$@"
  else
    sudo -n "$@"
  fi
}

missing=()

# need PACKAGE TEST...: remembers the package when the test fails.
need() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}

python() { "$(interpreter python3)" "$@"; }

has_static_libc() { [[ -f $(cc -print-file-name=libc.a) ]]; }

# interpreter NAME: where the system has it. PATH is not searched, as a sandbox sees nothing but the system.
interpreter() {
  local dir
  for dir in /usr/bin /usr/local/bin /bin; do
    if [[ -x $dir/$1 ]]; then
      printf '%s\n' "$dir/$1"
      return
    fi
  done
  return 1
}

# What sandboxes and the build need.
need_system() {
  need bubblewrap interpreter bwrap
  need python3 interpreter python3
  need nodejs interpreter node
  # They install the packages of sessions.
  need python3-pip python -m pip --version
  need npm interpreter npm
  need curl command -v curl
  need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
  need gcc command -v cc
  need libc6-dev has_static_libc
  need python3-venv python -c 'import ensurepip, venv'
}

# Installs what is missing.
# install_system [NEEDS]: NEEDS is the function that says what is needed.
install_system() {
  missing=()
  "${1:-need_system}"
  if ((${#missing[@]} == 0)); then
    note "system packages: nothing is missing"
    return
  fi
  command -v apt-get >/dev/null ||
    die "missing: ${missing[*]}" "this is neither Debian nor Ubuntu: install these with your package manager"
  step "installing ${missing[*]}" "sandboxes, interpreters and the build need them" "a minute"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3)
  as_root timeout -k 10 600 "${apt[@]}" update ||
    note "the package lists could not be refreshed; trying with the old ones"
  as_root timeout -k 10 1200 "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null ||
    die "cannot install ${missing[*]}" "the messages of apt-get are above"
}

# at_least NAME FOUND WANTED FIX: compares versions.
at_least() {
  local name=$1 found=$2 wanted=$3 fix=$4 oldest
  [[ -n $found ]] || die "$name does not say its version" "$fix"
  oldest=$(printf '%s\n%s\n' "$found" "$wanted" | sort -V | head -n 1)
  [[ $oldest == "$wanted" ]] || die "$name $found is too old: $wanted or newer is needed" "$fix"
  note "$name $found (needs $wanted or newer)"
}

check_versions() {
  local fix="Debian 12 and Ubuntu 24.04 are the first releases that have it"
  at_least bubblewrap "$("$(interpreter bwrap)" --version | awk '{print $2}')" 0.8 "$fix"
  at_least python "$(python -c 'import platform; print(platform.python_version())')" 3.9 "$fix"
  at_least node "$("$(interpreter node)" --version | tr -d v)" 18 "$fix"
}

find_cargo() {
  if ! command -v cargo >/dev/null && [[ -r ${HOME:-}/.cargo/env ]]; then
    # shellcheck disable=SC1091
    . "$HOME/.cargo/env"
  fi
  command -v cargo >/dev/null || die "there is no cargo" "install Rust with rustup, then run this again"
}

host_triple() { rustc -vV | sed -n 's/^host: //p'; }

target_dir() {
  cargo metadata --format-version 1 --no-deps --offline | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# Builds the executor statically, so that it runs in any root.
# build_static_executor [FLAG...]: without --release, for debugging.
build_static_executor() {
  # The target is named so that the flags are for the executor alone and not for build scripts.
  RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    bounded 5400 cargo build --locked "$@" -p sandmesh-executor --target "$(host_triple)"
}

# Builds it for the release, and puts it beside the program.
build_executor() {
  local triple target
  triple=$(host_triple)
  target=$(target_dir)
  build_static_executor --release || return
  mkdir -p "$target/release"
  # Renamed into place: an executor that is running now keeps its own file.
  cp "$target/$triple/release/sandmesh-executor" "$target/release/.sandmesh-executor.new"
  mv "$target/release/.sandmesh-executor.new" "$target/release/sandmesh-executor"
}

build_program() { bounded 5400 cargo build --locked --release -p sandmesh; }

# python_tools FILE...: installs pinned requirements into .venv; does nothing when they are there.
python_tools() {
  local venv=$root/.venv file
  local wanted
  wanted=$(cat -- "$@" | cksum)
  if [[ -x $venv/bin/python && $(cat "$venv/.wanted" 2>/dev/null) == "$wanted" ]]; then
    note "python tools: .venv is up to date"
    return
  fi
  step "installing python tools into .venv" "just, and for tests buf, grpcurl and grpc_tools" "20 s"
  [[ -x $venv/bin/python ]] || python -m venv "$venv" || return
  for file in "$@"; do
    bounded 900 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 -r "$file" || return
  done
  printf '%s\n' "$wanted" >"$venv/.wanted"
}
