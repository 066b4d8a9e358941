-- name: history
-- What the newest runs of a playbook cost that are over; a run id begins with its time.
with newest as (
    select tokens, usd_micros from executor.runs
    where playbook = $1 and status in ('succeeded', 'failed', 'escalated')
    order by run_id desc
    limit $2
)
select count(*) as runs,
    percentile_disc(0.5) within group (order by usd_micros) as usd_micros_p50,
    percentile_disc(0.95) within group (order by usd_micros) as usd_micros_p95,
    percentile_disc(0.5) within group (order by tokens) as tokens_p50
from newest
