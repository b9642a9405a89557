# The README's main command against the installed program, with both processes killed in the middle.
# Expects `clorefleet` on PATH and CLOREFLEET_HOME. Needs nothing else.
set -euo pipefail

deploy=(clorefleet deploy smollm2-135m --budget 16/day --sandbox)
json() { python3 -c "import json,sys; d=json.load(sys.stdin); print($1)"; }

echo "-- deploy, kill -9 the command and the daemon while weights or engine are under way"
"${deploy[@]}" &
command_pid=$!
for _ in $(seq 1 300); do
  phase=$(clorefleet status --sandbox --json 2>/dev/null |
    json "next((r['phase'] for x in d['deployments'] for r in x['replicas']), '')" 2>/dev/null || true)
  case $phase in "syncing weights" | installing | launching | probing) break ;; esac
  sleep 0.2
done
echo "   phase when killed: $phase"
daemon_pid=$(clorefleet daemon status --sandbox --json | json "d['pid']")
kill -9 "$command_pid" "$daemon_pid"
wait "$command_pid" 2>/dev/null || true

echo "-- the same command again continues"
"${deploy[@]}"
rents=$(clorefleet cost --sandbox --json | json "len(d['segments'])")
[ "$rents" = 1 ] || { echo "rented $rents servers, expected 1"; exit 1; }

echo "-- and once more changes nothing"
"${deploy[@]}" 2>&1 | grep -F "already deployed"

echo "-- it answers through the gateway"
url=$(clorefleet daemon status --sandbox --json | json "d['gateway_url']")
token=$(cat "$CLOREFLEET_HOME"/state/sandbox/gateway.token)
answer=$(URL=$url TOKEN=$token python3 - <<'PY'
import json, os, urllib.request
body = json.dumps({"model": "smollm2-135m", "max_tokens": 16,
                   "messages": [{"role": "user", "content": "Say hello."}]}).encode()
request = urllib.request.Request(os.environ["URL"] + "/v1/chat/completions", body, {
    "Content-Type": "application/json", "Authorization": "Bearer " + os.environ["TOKEN"]})
print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"]["content"])
PY
)
[ -n "$answer" ] && echo "   it said: $answer"

echo "-- stop: no order left, the ledger equals the market's own bill"
clorefleet stop smollm2-135m --sandbox
[ "$(clorefleet wallet --sandbox --json | json "d['live_orders']")" = 0 ]
clorefleet cost --sandbox
[ "$(clorefleet cost --sandbox --json | json "all(s['state'] == 'settled' for s in d['segments'])")" = True ]

echo "-- the model it was made for, both ways"
clorefleet deploy glm-5.1 --budget 16/day --sandbox
clorefleet stop glm-5.1 --sandbox
clorefleet deploy glm-5.1 --budget 1200/day --prefer speed --sandbox
clorefleet stop glm-5.1 --sandbox
[ "$(clorefleet wallet --sandbox --json | json "d['live_orders']")" = 0 ]
clorefleet sandbox stop
