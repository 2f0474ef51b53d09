#!/usr/bin/env bash
# gpu.py on a machine with a GPU that has no network and little time (see README.md here).
#
#   benchmarks/gpu.sh prepare KIT [BASE.gguf [TEXTS]]   here: wheels, pieces, tokens, a rehearsal
#   benchmarks/gpu.sh call 1|2|3 KIT                    prints what to run there, in the checkout
#   benchmarks/gpu.sh merge ROWS.jsonl...               adds rows that came back to the results,
#                                                       before the next call: it skips what is there
#
# KIT is a folder that travels with the checkout: wheels/ (call 1 to 3), base/ (BASE in pieces of
# 45 MB, one a call) and tokens/ (call 3). TEXTS has train/*.txt and test/*.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=${TORCH:-2.11.0} TRANSFORMERS=${TRANSFORMERS:-5.17.0} PYTHON=${PYTHON:-python3}
PACKAGES=(peft==0.21.2 hydra-core==1.3.8 omegaconf==2.3.1 gguf==0.19.0)
SOURCES=(antlr4-python3-runtime==4.9.3) # a wheel is built of it

prepare() {
  local kit=$1 base=${2:-} texts=${3:-}
  mkdir -p "$kit/wheels"
  "$PYTHON" -m pip download -q --no-deps -d "$kit/wheels" "${PACKAGES[@]}"
  "$PYTHON" -m pip wheel -q --no-deps -w "$kit/wheels" "${SOURCES[@]}"
  if [ ! -x "$kit/../gpu-rehearsal/bin/python" ]; then
    "$PYTHON" -m venv "$kit/../gpu-rehearsal"
    "$kit/../gpu-rehearsal/bin/python" -m pip install -q "torch==$TORCH" "transformers==$TRANSFORMERS" \
      accelerate pytest "${PACKAGES[@]}" "${SOURCES[@]}"
  fi
  local python="$kit/../gpu-rehearsal/bin/python"
  if [ -n "$base" ]; then
    mkdir -p "$kit/base"
    split -b 45M -d "$base" "$kit/base/part."
    (cd "$(dirname "$base")" && sha256sum "$(basename "$base")") | sed 's/  .*/  base.gguf/' > "$kit/base/sha256"
  fi
  if [ -n "$texts" ]; then
    PYTHONPATH=src:benchmarks "$python" -m gpu_parts.tokens "${base:?}" "$texts" "$kit/tokens"
  fi
  "$python" benchmarks/gpu.py --device cpu --tiny --out "$kit/../gpu-rehearsal/rows.jsonl"
  du -shc "$kit"/*
  echo "the checkout: $(git archive HEAD | wc -c) bytes"
}

call() {
  local number=$1 kit=$2
  local site="$kit/site"
  local run="$PYTHON -m pip install -q --no-index --no-deps --no-compile --upgrade --target $site $kit/wheels/*.whl"
  run+=" && PYTHONPATH=$site $PYTHON benchmarks/gpu.py --done benchmarks/results/gpu.jsonl"
  run+=" --out \${OUT:-.}/gpu-$number.jsonl"
  case $number in
    1) echo "$run --stages 0,1,2a --deadline-s 380" ;;
    2) echo "$run --stages 1,2b --only 2b/,1/suite --deadline-s 290" ;;
    3) local model=""
      if [ -d "$kit/base" ]; then
        echo "cat $kit/base/part.* > $kit/base/base.gguf && (cd $kit/base && sha256sum -c sha256) &&"
        model=" --model $kit/base/base.gguf"
      fi
      [ -d "$kit/tokens" ] && model+=" --tokens $kit/tokens"
      echo "$run --stages 3 --deadline-s 280$model" ;;
    *) echo "call 1, 2 or 3" >&2; exit 2 ;;
  esac
}

merge() {
  "$PYTHON" benchmarks/gpu.py --merge "$@"
}

case ${1:-} in
  prepare | call | merge) "$@" ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
