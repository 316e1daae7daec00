#!/bin/sh
# The queue with nothing but grpcurl and `tcqueue token`: list, describe, create a task, work on it by hand.
# Reads TCQUEUE_CLIENT_ADDRESS, TCQUEUE_CLIENT_ID and TCQUEUE_CLIENT_ACCESS_TOKEN.
set -eu

address=${TCQUEUE_CLIENT_ADDRESS:-127.0.0.1:50051}
call() { grpcurl -plaintext -H "authorization: Bearer $(tcqueue token)" "$@"; }
date_after() { python3 -c "import datetime as d; print((d.datetime.now(d.timezone.utc) + d.timedelta(seconds=$1)).isoformat(timespec='milliseconds')[:23] + 'Z')"; }

call "$address" list
call "$address" describe tcqueue.v1.Queue.CreateTask

task_id=$(python3 -c "import uuid, base64; print(base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22])")
call -d @ "$address" tcqueue.v1.Queue/CreateTask <<JSON
{
  "task_id": "$task_id",
  "task": {
    "task_queue_id": "demo/by-hand",
    "created": "$(date_after 0)",
    "deadline": "$(date_after 3600)",
    "payload": "{\"command\": \"true\"}",
    "metadata": {"name": "by hand", "description": "a task", "owner": "you@example.com", "source": "https://example.com/"}
  }
}
JSON

# A worker's stream: open, then accept and resolve what was offered. A real worker reads the claim first;
# here we know what it will be.
{
  echo '{"open": {"task_queue_id": "demo/by-hand", "worker_group": "hand", "worker_id": "made", "slots": 1}}'
  sleep 1
  echo "{\"accept\": {\"runs\": [{\"task_id\": \"$task_id\", \"run_id\": 0}]}}"
  sleep 1
  echo "{\"resolve\": {\"resolutions\": [{\"task_id\": \"$task_id\", \"run_id\": 0, \"outcome\": \"OUTCOME_COMPLETED\"}]}}"
  sleep 1
} | call -d @ "$address" tcqueue.v1.Queue/ClaimWork

call -d "{\"task_id\": \"$task_id\"}" "$address" tcqueue.v1.Queue/GetTaskStatus
