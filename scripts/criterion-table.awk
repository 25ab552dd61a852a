# Criterion's lines as a Markdown table: each bench's time as criterion estimates it (the middle
# one of its three figures), and its rate where it has one.
#
#   awk -f scripts/criterion-table.awk target/bench-stages.txt

function estimate(parts) {
  split($0, parts, "[][]")
  split(parts[2], parts, " ")
  return parts[3] " " parts[4]
}
function flush() {
  if (time != "") printf "| %s | %s | %s |\n", name, time, rate
  time = rate = ""
}
BEGIN { print "| bench | time | rate |\n|---|---|---|" }
/^Benchmarking|^\|/ { next }
/^[^ ].*\// { flush(); name = $0; sub(/ +time:.*/, "", name) }
/ time: +\[[0-9]/ { time = estimate() }
/ thrpt: +\[[0-9]/ { rate = estimate() }
END { flush() }
