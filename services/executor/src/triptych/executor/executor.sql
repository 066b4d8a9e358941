-- name: claim
select partition, epoch, offsets from claim_partitions($1, $2, $3)

-- name: load
select run_id, type, at, data from journal where run_id = any($1) order by run_id, seq

-- name: ended
select j.run_id, j.type, j.at, j.data
from (select distinct * from unnest($1::text[], $2::text[])) as repeated (tenant, task_id)
join tasks t using (tenant, task_id)
join runs r on r.run_id = t.run_id and r.finished_at is not null
join journal j on j.run_id = r.run_id
order by j.run_id, j.seq

-- name: left_behind
select run_id, position, partition, target, topic, key, headers, value from outbox
where partition = any($1) order by run_id, position

-- name: timers
select run_id, due_at from timers where partition = any($1)

-- name: commit
select commit_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: forget
delete from outbox o using unnest($1::outbox_key[]) k where o.run_id = k.run_id and o.position = k.position

-- name: deploy_playbook
insert into playbooks (name, version, definition) values ($1, $2, $3) on conflict do nothing

-- name: playbooks
select definition from playbooks
