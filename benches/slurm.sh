#!/bin/sh
# A job array of short tasks under Slurm: what a container adds to a task. Contenders take turns, medians are shown.
#
#   slurm.sh SIFU IMAGE DIRECTORY [ROUNDS]     SLURM_CONF names the cluster; DIRECTORY is empty, the user's own, and seen by the nodes
#
# `task` is the time from before the command to after it, as the task's own script sees it, beside the other tasks.
# `array` is the time from sbatch to the end of the last task, divided by the number of tasks: Slurm's work included.
set -eu
sifu=$1 image=$2 directory=$3 rounds=${4:-5}
tasks=100
export LC_ALL=C
cd "$directory"

median() { sort -n | awk '{ value[NR] = $1 } END { print (value[int((NR + 1) / 2)] + value[int(NR / 2) + 1]) / 2 }'; }

# array NAME COMMAND: runs one array, and adds a line `MILLISECONDS` to NAME.array and one per task to NAME.task.
array() {
  name=$1 command=$2
  cat >job.sh <<END
#!/bin/sh
begin=\$(date +%s%N)
$command
code=\$?
echo "\$begin \$(date +%s%N) \$code" >ended.\$SLURM_ARRAY_TASK_ID.new
mv ended.\$SLURM_ARRAY_TASK_ID.new ended.\$SLURM_ARRAY_TASK_ID
END
  begin=$(date +%s%N)
  job=$(sbatch --parsable --output=/dev/null --array="1-$tasks" job.sh)
  until set -- ended.*[0-9] && [ $# = "$tasks" ]; do
    [ $(($(date +%s%N) - begin)) -lt 120000000000 ] || { scancel "$job"; echo "no end of the array of $name" >&2; exit 1; }
    sleep 0.2
  done
  cat ended.* | awk '$3 != 0 { bad++ } END { exit bad > 0 }' || { echo "a task of $name failed" >&2; exit 1; }
  awk -v name="$name" '{ printf "%.3f\n", ($2 - $1) / 1e6 >>(name ".task") }' ended.*
  cat ended.* | awk -v begin="$begin" -v tasks="$tasks" '$2 > end { end = $2 } END { printf "%.3f\n", (end - begin) / 1e6 / tasks }' >>"$name.array"
  rm -f ended.*
  until [ -z "$(squeue --noheader --job "$job" 2>/dev/null)" ]; do sleep 0.1; done
}

contenders="true sifu"
! command -v apptainer >/dev/null || contenders="$contenders apptainer"
round=0
while [ "$round" -lt "$rounds" ]; do
  round=$((round + 1))
  for contender in $contenders; do
    case $contender in
    true) array true /bin/true ;;
    sifu) array sifu "$sifu exec $image true" ;;
    apptainer) array apptainer "apptainer --silent exec $image true" ;;
    esac
  done
done

printf '%s\n' "a job array of $tasks tasks, medians of $rounds arrays (ms per task)"
printf '%-34s %10s %10s\n' "" task array
for contender in $contenders; do
  label="sifu exec image.sif true"
  case $contender in true) label=true ;; apptainer) label="apptainer exec image.sif true" ;; esac
  printf '%-34s %10.1f %10.1f\n' "$label" "$(median <"$contender.task")" "$(median <"$contender.array")"
done
for kind in task array; do
  awk -v kind="$kind" -v sifu="$(median <"sifu.$kind")" -v bare="$(median <"true.$kind")" \
    'BEGIN { printf "sifu'"'"'s share of a task, by %s: %.1f ms (target: at most 10)\n", kind, sifu - bare }'
done
