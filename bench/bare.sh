#!/usr/bin/env bash
# Measures ltxq on a machine with a GPU and no network. Needs Python 3.12 with torch, torchaudio,
# transformers, accelerate, scipy, einops, pillow and pytest, and a checkout with the wheels that
# bench/wheels.py downloaded.
#
#   bench/bare.sh check [MODEL]    correctness: tests/gpu, and the smallest clip against the library
#   bench/bare.sh table MODEL      time of clips, compared with the library
#   bench/bare.sh busy [MODEL]     how busy a backlog keeps the GPU, also through a real queue
#   bench/bare.sh each [MODEL]     time of clips without each optimization
#   bench/bare.sh profile [MODEL]  time by kernel
#   bench/bare.sh attention        time by attention kernel; flash attention 3 if downloaded
#
# MODEL: ltx-2-19b (default) or ltx-2.3-22b. Each step ends within LIMIT seconds (540), prints a
# short table of its figures at the end, and writes all figures and a log to RESULTS (bench/results).
# Without a GPU it runs the tiny model, as a rehearsal. PYTHON: another python3. SCALE=small: few
# clips, for a quick rehearsal.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
step=${1:-} model=${2:-ltx-2-19b}
python=${PYTHON:-python3} limit=${LIMIT:-540} results=${RESULTS:-$PWD/bench/results}
runs=5 few=3 warmups=2 jobs=20
if [ "${SCALE:-}" = small ]; then runs=1 few=1 warmups=1 jobs=2; fi

usage() { sed -n '2,/^set/ { /^set/d; s/^# \{0,1\}//; p }' "${BASH_SOURCE[0]}"; exit 2; }
case $step in check | table | busy | each | profile | attention) ;; *) usage ;; esac

export PYTHONPATH="$PWD:$PWD/producer:$PWD/worker${PYTHONPATH:+:$PYTHONPATH}"
if compgen -G '.whl/*.whl' > /dev/null &&
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'; then  # the wheels are for 3.12
  if [ "$(cat .site/.wheels 2> /dev/null)" != "$(ls .whl)" ]; then
    rm -rf .site
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target .site .whl/*.whl || exit
    ls .whl > .site/.wheels
  fi
  export PYTHONPATH="$PWD/.site:$PYTHONPATH"
fi
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$PWD/.inductor}"
mkdir -p "$results"

left() { echo $((limit - SECONDS)); }
# run SECONDS COMMAND…: for at most that many seconds, within the step's limit.
run() {
  local most=$1; shift
  [ "$most" -le "$(left)" ] || most=$(left)
  [ "$most" -gt 0 ] || { echo "no time left for: $*"; return 1; }
  echo "[$SECONDS s] ${*//$'\n'*/ …}"
  timeout --kill-after 10 "$most" "$python" "$@"
}
# clip SECONDS OPTIONS…: gives the bench a shorter limit, so that it stops itself before the timeout.
clip() {
  local most=$1; shift
  [ "$most" -le "$(left)" ] || most=$(left)
  run "$most" bench/clip.py --model "$model" --results "$results" --limit $((most - most / 8)) "$@"
}

check() {
  nvidia-smi -L 2> /dev/null || echo 'no GPU: a rehearsal with the tiny model'
  run 60 -c 'import sys, torch, transformers, accelerate, av, einops, ltx_core, ltx_pipelines, PIL
import pydantic, pytest, scipy; print(sys.version.split()[0],
    "torch", torch.__version__, "cuda", torch.version.cuda, "cudnn", torch.backends.cudnn.version(),
    "transformers", transformers.__version__, "av", av.__version__)' || return
  local failed=0
  run 260 -m pytest -W default -p no:cacheprovider -q -rA -m 'not full_size' tests/gpu \
    --junitxml "$results/tests-gpu.xml" || failed=$?
  clip 280 --workloads a --arms library ltxq-fp8 ltxq --runs $runs --warmups $warmups || failed=$?
  return $failed
}
table() { clip "$limit" --workloads a b c --arms library ltxq-fp8 --runs $runs --warmups $warmups; }
each() {
  clip "$limit" --workloads a b --arms ltxq-fp8 --without each --runs $few --warmups $warmups
}
busy() {
  local options=(bench/busy.py --model "$model" --results "$results" --workloads a b --jobs $jobs)
  local failed=0  # in separate processes, since a card holds only one model
  run 240 "${options[@]}" --parts process || failed=$?
  run "$limit" "${options[@]}" --parts queue || failed=$?
  return $failed
}
profile() {
  local failed=0
  run "$limit" bench/kernels.py --model "$model" --results "$results" --workloads a b c \
    --limit 400 || failed=$?
  attention || failed=$?
  return $failed
}
attention() { run 120 bench/attention.py --results "$results"; }

"$step" 2>&1 | tee "$results/$step.log"
failed=${PIPESTATUS[0]}
printf '\n'
case $step in
  check) kinds=(tests clip) ;;
  table) kinds=(clip) ;;
  profile) kinds=(profile attention) ;;
  *) kinds=("$step") ;;
esac
"$python" bench/show.py "$results" "${kinds[@]}" || failed=1
[ "$failed" = 0 ] || echo "$step failed: see $results/$step.log"
exit "$failed"
