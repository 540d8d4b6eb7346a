#!/bin/bash
# Resubmits the participants that participants.sbatch did not finish: those with an exit code other than 0, and those without
# a row (the task was killed). Takes the same arguments; SBATCH_OPTIONS holds options for sbatch.
#
#   docs/slurm/resubmit.sh labels.txt /data/bids /data/out --model demo
set -eu
labels=$1 out_dir=$3
again=$(mktemp "$out_dir/logs/slurm/again-XXXXXX.txt")
while read -r label; do
  row=$out_dir/logs/slurm/$label.tsv
  code=$(cut -f 2 "$row" 2> /dev/null || echo none)
  [ "$code" = 0 ] || echo "$label" >> "$again"
  [ "$code" = 0 ] || echo "$label: exit code $code"
done < "$labels"
count=$(wc -l < "$again")
if [ "$count" = 0 ]; then
  rm "$again"
  echo "All participants of $labels are done."
  exit 0
fi
shift
# shellcheck disable=SC2086 # options are words
exec sbatch ${SBATCH_OPTIONS:-} --array="1-$count" "$(dirname "$0")/participants.sbatch" "$again" "$@"
