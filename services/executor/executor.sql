-- name: claim
select partition, epoch, offsets from claim_partitions($1, $2, $3, $4)

-- name: epochs
select partition, epoch from partitions where partition = any($1)

-- name: load
select run_id, at, events from journal_commits where run_id = any($1) order by run_id, seq

-- name: known
select tenant, task_id, fingerprint from tasks
where (tenant, task_id) in (select * from unnest($1::text[], $2::text[]))

-- name: ended
select j.run_id, j.at, j.events
from (select distinct * from unnest($1::text[], $2::text[])) as repeated (tenant, task_id)
join tasks t using (tenant, task_id)
join runs r on r.run_id = t.run_id and r.finished_at is not null
join journal_commits j on j.run_id = r.run_id
order by j.run_id, j.seq

-- name: left_behind
select partition, epoch, number, messages, withheld from outbox
where partition = any($1) order by partition, epoch, number

-- name: timers
select run_id, due_at, partition from timers where partition = any($1)

-- name: active
-- Every active run has a timer, for its deadline at the latest.
select r.run_id, r.partition, r.tenant, r.playbook
from timers t join runs r using (run_id)
where t.partition = any($1) and r.status in ('planning', 'running', 'reviewing', 'undoing')

-- name: behind
-- Runs under way whose rows show less than their journals: an owner died before it had written them.
select t.run_id
from timers t join runs r using (run_id) cross join lateral (
    select seq from journal_commits c where c.run_id = t.run_id order by seq desc limit 1
) as last
where t.partition = any($1) and r.seq < last.seq

-- name: waiting
select partition, tenant, playbook, queued_at, run_id
from (
    select *, row_number() over (partition by partition, tenant, playbook order by queued_at, run_id) as place
    from queue where partition = any($1)
) as placed
where place <= $2
order by queued_at, run_id

-- name: heads
select q.partition, q.tenant, q.playbook, q.queued_at, q.run_id
from unnest($1::integer[], $2::text[], $3::text[]) as line (partition, tenant, playbook)
cross join lateral (
    select * from queue q
    where q.partition = line.partition and q.tenant = line.tenant and q.playbook = line.playbook
    order by q.queued_at, q.run_id limit $4
) as q
order by q.queued_at, q.run_id

-- name: enqueue
insert into queue select * from unnest($1::queue[])

-- name: dequeue
delete from queue where run_id = any($1)

-- name: readings
select topic, partition, first, last, life, lives from readings where partition = any($1)

-- name: reading
-- What this life is about to read. The same in another life counts.
insert into readings as r (topic, partition, first, last, life, lives)
select topic, partition, first, last, $5, 1
from unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[]) as t (topic, partition, first, last)
order by partition, topic
on conflict (partition, topic) do update set
    first = excluded.first, last = excluded.last, life = excluded.life,
    lives = case
        when (r.first, r.last) <> (excluded.first, excluded.last) then 1
        when r.life = excluded.life then r.lives
        else r.lives + 1
    end
returning topic, partition, first, last, life, lives

-- name: commit
select commit_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: reserve_key
-- Who has a key already, for the same call, has it still, and for the whole time. The claim grows, so that who looked before does not take it.
insert into business_keys as known (tenant, key, run_id, step, idempotency_key, expires_at)
values ($1, $2, $3, $4, $5, now() + $6::bigint * interval '1 millisecond')
on conflict (tenant, key) do update set
    claim = known.claim + 1, reserved_at = excluded.reserved_at, expires_at = excluded.expires_at
where known.run_id = excluded.run_id and known.idempotency_key = excluded.idempotency_key
returning true

-- name: key_holder
select
    run_id, step, idempotency_key, claim, expires_at <= now() as is_expired, expires_at - reserved_at as lasts
from business_keys
where tenant = $1 and key = $2

-- name: is_over
-- Whether the time of a key is over that begins with the answer to its write.
select $1::timestamptz + $2::interval <= now()

-- name: take_key
-- From a call that did nothing, or whose time is over. The claim must be the one that was read: no other call took it since.
update business_keys set
    run_id = $3, step = $4, idempotency_key = $5, claim = claim + 1, reserved_at = now(),
    expires_at = now() + $6::bigint * interval '1 millisecond'
where tenant = $1 and key = $2 and claim = $7
returning true

-- name: forget
delete from outbox o using unnest($1::outbox_key[]) k
where o.partition = k.partition and o.epoch = k.epoch and o.number = k.number

-- name: deploy_playbook
insert into playbooks (name, version, definition) values ($1, $2, $3) on conflict do nothing

-- name: activate_from_folder
-- What a folder holds counts when it is another version than that which it held before.
insert into activations (name, version, folder_version, activated_by)
select held.name, held.version, held.version, 'folder'
from unnest($1::text[], $2::text[]) as held (name, version)
where held.version is distinct from (
    select newest.folder_version from activations as newest
    where newest.name = held.name order by newest.number desc limit 1
)

-- name: activations
select distinct on (name) name, version, folder_version from activations order by name, number desc

-- name: playbook
select definition from playbooks where name = $1 and version = $2

-- name: playbooks
select definition from playbooks
