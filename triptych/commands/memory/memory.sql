-- Under the role of the tool, so its schema is the one that is meant.

-- name: subjects
select subject, count(*) as facts, max(remembered_at) as newest, min(expires_at) as next_to_expire
from memories
where tenant = $1 and expires_at > now()
group by subject
order by subject

-- name: facts
select name, value, source, run_id::text as run_id, step, remembered_at, expires_at
from memories
where tenant = $1 and subject = $2 and expires_at > now()
order by name

-- name: forget
with gone as (delete from memories where tenant = $1 and subject = $2 returning 1) select count(*) from gone
