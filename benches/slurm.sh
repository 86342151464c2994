#!/bin/sh
# Short tasks under Slurm: what a container adds. Contenders take turns, medians are shown.
#
#   slurm.sh SIFU IMAGE DIRECTORY [ROUNDS]     SLURM_CONF names the cluster; DIRECTORY is empty, the user's own, and seen by the nodes
#
# `array` is the time from sbatch to the end of the last of 100 tasks, divided by 100: Slurm's work included, and on nodes whose
# processors many tasks share. `alone` is the time of one start in a job that does nothing else, from before the command to
# after it.
set -eu
sifu=$1 image=$2 directory=$3 rounds=${4:-5}
tasks=100
export LC_ALL=C
cd "$directory"

median() { sort -n | awk '{ value[NR] = $1 } END { print (value[int((NR + 1) / 2)] + value[int(NR / 2) + 1]) / 2 }'; }

command_of() {
  case $1 in
  true) echo /bin/true ;;
  sifu) echo "$sifu exec $image true" ;;
  apptainer) echo "apptainer --silent exec $image true" ;;
  esac
}

# until_there COUNT PATTERN JOB: waits for so many files.
until_there() {
  count=$1 pattern=$2 job=$3
  patience=1200
  # shellcheck disable=SC2086
  until set -- $pattern && [ $# = "$count" ] && [ -e "$1" ]; do
    patience=$((patience - 1))
    [ "$patience" -gt 0 ] || { scancel "$job"; echo "no end of job $job" >&2; exit 1; }
    sleep 0.1
  done
}

# array NAME: runs one array, and adds a line of milliseconds to NAME.array.
array() {
  cat >job.sh <<END
#!/bin/sh
$(command_of "$1")
echo "\$? \$(date +%s%N)" >new.\$SLURM_ARRAY_TASK_ID
mv new.\$SLURM_ARRAY_TASK_ID ended.\$SLURM_ARRAY_TASK_ID
END
  begin=$(date +%s%N)
  job=$(sbatch --parsable --output=/dev/null --array="1-$tasks" job.sh)
  until_there "$tasks" 'ended.*' "$job"
  cat ended.* | awk -v begin="$begin" -v tasks="$tasks" '
    $1 != 0 { bad++ }
    $2 > end { end = $2 }
    END { printf "%.3f\n", (end - begin) / 1e6 / tasks; exit bad > 0 }' >>"$1.array" || { echo "a task of $1 failed" >&2; exit 1; }
  rm -f ended.*
  until [ -z "$(squeue --noheader --job "$job" 2>/dev/null)" ]; do sleep 0.1; done
}

# alone NAME: runs one job of 20 starts, and adds the milliseconds of each to NAME.alone.
alone() {
  cat >job.sh <<END
#!/bin/sh
set -e
for start in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  begin=\$(date +%s%N)
  $(command_of "$1")
  echo "\$begin \$(date +%s%N)" >>times
done
mv times ended.1
END
  until_there 1 ended.1 "$(sbatch --parsable --output=job.out job.sh)"
  awk '{ printf "%.3f\n", ($2 - $1) / 1e6 }' ended.1 >>"$1.alone"
  rm -f ended.1
}

contenders="true sifu"
! command -v apptainer >/dev/null || contenders="$contenders apptainer"
round=0
while [ "$round" -lt "$rounds" ]; do
  round=$((round + 1))
  for contender in $contenders; do
    array "$contender"
    alone "$contender"
  done
done

printf '%s\n' "ms per task, medians of $rounds arrays of $tasks tasks, and of $((rounds * 20)) starts"
printf '%-34s %10s %10s\n' "" array alone
for contender in $contenders; do
  label="$contender exec image.sif true"
  [ "$contender" != true ] || label=true
  printf '%-34s %10.1f %10.1f\n' "$label" "$(median <"$contender.array")" "$(median <"$contender.alone")"
done
awk -v sifu="$(median <sifu.array)" -v bare="$(median <true.array)" \
  'BEGIN { printf "sifu'"'"'s share of a task in an array: %.1f ms (target: at most 10)\n", sifu - bare }'
