#!/bin/sh
# What runs of an offline kit (scripts/offline-kit.cjs) on a machine without Node, npm or network:
#
#   sh run test:cuda ops            as npm run test:cuda -- ops
#   sh run bench:cuda linear        as npm run bench:cuda -- linear
#   sh run node FILE …              the kit's own Node
#
# The first call unpacks beside this file, for which tar and xz (or python3) are needed; later ones need no other program at all.
set -eu
case $0 in
  */*) folder=${0%/*} ;;
  *) folder=. ;;
esac
folder=$(cd "$folder" && pwd)
unpacked=$folder/unpacked

# The contents of an .xz file.
expand() {
  if command -v xz >/dev/null 2>&1; then
    xz -dc "$1"
  else
    python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1"
  fi
}

if [ ! -e "$unpacked/complete" ]; then
  rm -rf "$unpacked"
  mkdir -p "$unpacked"
  expand "$folder/node.xz" >"$unpacked/node"
  chmod +x "$unpacked/node"
  expand "$folder/app.tar.xz" | tar -xf - -C "$unpacked"
  : >"$unpacked/complete"
fi

node=$unpacked/node
# The GPU's driver, where an image has it in a folder that the loader is not told of.
for libraries in /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do
  [ -d "$libraries" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
done
# The kit's C++ runtime only where there is no other: who is started from here, such as Python, has a newer one.
"$node" --version >/dev/null 2>&1 || LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$unpacked/lib
[ -z "${LD_LIBRARY_PATH:-}" ] || export LD_LIBRARY_PATH

[ $# -gt 0 ] || set -- help
command=$1
shift
case $command in
  test:cuda) exec "$node" "$unpacked/app/test/cuda/run.js" "$@" ;;
  bench:cuda) exec "$node" "$unpacked/app/bench/cuda/run.js" "$@" ;;
  node) exec "$node" "$@" ;;
  *)
    echo "usage: sh run test:cuda|bench:cuda|node ARGUMENTS" >&2
    exit 2
    ;;
esac
