-- Every statement of the worker loop. A statement that writes to a job names the lease that allows it.

-- name: open_lease
-- A new life of this instance. Its earlier lives are over, so their jobs are free immediately. No row: another process
-- has drawn this id, so this one asks again.
with over as (
    delete from leases where instance = $1 or until < now() - interval '1 day'
)
insert into leases (instance, until) values ($1, now() + $2::int * interval '1 millisecond')
on conflict (id) do nothing
returning id

-- name: renew_lease
update leases set until = now() + $2::int * interval '1 millisecond' where id = $1 returning true

-- name: close_lease
-- Hand back what is left. It was not a crash, so it does not count as a delivery.
with back as (
    update jobs set lease = null, state = case when state = 'started' then 'received'::job_state else state end
    where lease = $1 and state <> 'published'
)
delete from leases where id = $1

-- name: take_in
-- The inbox: one row a request. A known request comes back with its answer, if it has one.
with incoming as (
    select * from unnest($2::uuid[], $3::text[], $4::text[], $5::int[], $6::bytea[], $7::text[], $8::timestamptz[])
        as t (run_id, request_id, tenant, partition, request, traceparent, deadline_at)
), fresh as (
    insert into jobs (run_id, request_id, tenant, partition, request, traceparent, deadline_at, lease)
    select run_id, request_id, tenant, partition, request, traceparent, deadline_at, $1
    from incoming order by run_id, request_id
    on conflict do nothing
    returning run_id, request_id
)
select run_id, request_id, true as fresh, null::bytea as answer from fresh
union all
select jobs.run_id, jobs.request_id, false, jobs.answer
from incoming join jobs using (run_id, request_id)
where jobs.answer is not null

-- name: take_over
-- Jobs of processes that are gone, or handed back. A life in which a job was not begun counts as a
-- delivery only the first time: after that, a start is always recorded, so its absence is known.
-- A parked job is free when its time is up, and stays parked: it is not executed again, but answered.
with free as (
    select run_id, request_id, state as was from jobs
    where state <> 'published' and (state <> 'parked' or deadline_at <= now())
      and not exists (select from leases where leases.id = jobs.lease and leases.until >= now())
    order by received_at
    limit $2
    for update skip locked
)
update jobs set
    lease = $1,
    deliveries = deliveries + (was = 'started' or (was = 'received' and deliveries = 1 and lease is not null))::int,
    state = case when was = 'started' then 'received' else was end
from free
where jobs.run_id = free.run_id and jobs.request_id = free.request_id
returning jobs.run_id, jobs.request_id, jobs.tenant, jobs.partition, jobs.request, jobs.traceparent, jobs.answer,
    jobs.deliveries, jobs.started_at is not null as was_started, jobs.state = 'parked' as was_parked

-- name: reclaim
-- Jobs that the table gives to this process and that it does not know of.
select run_id, request_id, tenant, partition, request, traceparent, answer, deliveries,
    started_at is not null as was_started, state = 'parked' as was_parked
from jobs where lease = $1 and state <> 'published'
    and (run_id, request_id) not in (select * from unnest($2::uuid[], $3::text[]))

-- name: take_over_answers
-- One commit of answers whose process is gone, or that this process does not know of. One at a time: it may be large.
-- The jobs of a commit have its time. If the clock was set back, another one may have the same: then an answer goes out
-- twice.
with free as (
    select stored_by, number from outbox
    where (stored_by, number) not in (select * from unnest($2::bigint[], $3::bigint[]))
      and (lease = $1 or not exists (select from leases where leases.id = outbox.lease and leases.until >= now()))
    order by stored_by, number
    limit 1
    for update skip locked
), taken as (
    update outbox set lease = $1
    from free
    where outbox.stored_by = free.stored_by and outbox.number = free.number
    returning outbox.stored_by, outbox.number, outbox.stored_at, outbox.run_ids
)
select taken.stored_by, taken.number, jobs.run_id, jobs.request_id, jobs.tenant, jobs.partition, jobs.traceparent,
    jobs.answer
from taken left join jobs
    on jobs.run_id = any(taken.run_ids) and jobs.lease = taken.stored_by and jobs.answered_at = taken.stored_at

-- name: start
update jobs set state = 'started', started_at = coalesce(started_at, now())
where run_id = $2 and request_id = $3 and lease = $1 and state in ('received', 'started')
returning true

-- name: settle
-- One group commit: new answers (only where the lease still holds), jobs that are not in the table yet (most have their
-- answers), and what Kafka has acknowledged. It may be repeated after an unknown outcome, under another number.
-- One row in the outbox stands for all answers of the commit, whose jobs need no mark of their own then.
-- A known job stays as it is, unless it is ours by now and has no answer, or this one. The process that gave another
-- answer may have published it, or may do so when it wakes up.
-- `distinct` keeps the planner from the index of open jobs: on a table without statistics it would read all of them for
-- each row. The insert comes first, in the order of the key. So a statement that waits for a row of another one does not
-- hold a row that a statement in the same order needs.
with published as (
    update jobs set state = 'published', published_at = now()
    from unnest($5::uuid[], $6::text[]) as done (run_id, request_id)
    where jobs.run_id = done.run_id and jobs.request_id = done.request_id
      and jobs.state is not distinct from 'answered'
), acknowledged as (
    delete from outbox using unnest($15::bigint[], $16::bigint[]) as done (stored_by, number)
    where outbox.stored_by = done.stored_by and outbox.number = done.number
), unpersisted as (
    insert into jobs as known (
        run_id, request_id, tenant, partition, request, traceparent, deadline_at, lease, state, answer, answered_at
    )
    select run_id, request_id, tenant, partition, request, traceparent, deadline_at, $1,
        case when answer is null then 'received' else 'published' end::job_state,
        answer, case when answer is not null then now() end
    from unnest(
        $7::uuid[], $8::text[], $9::text[], $10::int[], $11::bytea[], $12::text[], $13::timestamptz[], $14::bytea[]
    ) as t (run_id, request_id, tenant, partition, request, traceparent, deadline_at, answer)
    order by run_id, request_id
    on conflict (run_id, request_id) do update
        set state = 'published', answer = excluded.answer, answered_at = excluded.answered_at
        where known.lease = $1 and excluded.answer is not null
            and (known.answer is null or known.answer = excluded.answer)
    returning run_id, request_id, answer is not null as is_answered
), settled as (
    update jobs set state = 'published', answer = done.answer, answered_at = now()
    from unnest($2::uuid[], $3::text[], $4::bytea[]) as done (run_id, request_id, answer)
    where jobs.run_id = done.run_id and jobs.request_id = done.request_id
      and jobs.lease = $1 and (jobs.answer is null or jobs.answer = done.answer)
    returning jobs.run_id, jobs.request_id
), accepted as (
    select run_id, request_id, is_answered from unpersisted union all select run_id, request_id, true from settled
), stored as (
    insert into outbox (stored_by, number, lease, run_ids)
    select $1, $17, $1, array_agg(run_id) from accepted where is_answered having count(*) > 0
)
select run_id, request_id from accepted

-- name: withdraw
-- A job that has not begun is answered as withdrawn, also before its request has come. A job that has begun goes on, and
-- an answered one comes back with its answer. The statement that begins a job also asks whether it was withdrawn.
with called_off as (
    select * from unnest($2::uuid[], $3::text[], $4::text[], $5::int[], $6::text[], $7::timestamptz[], $8::bytea[])
        as t (run_id, request_id, tenant, partition, traceparent, deadline_at, answer)
), withdrawn as (
    insert into jobs as known (
        run_id, request_id, tenant, partition, traceparent, deadline_at, lease, state, answer, answered_at
    )
    select run_id, request_id, tenant, partition, traceparent, deadline_at, $1, 'answered', answer, now()
    from called_off order by run_id, request_id
    on conflict (run_id, request_id) do update
        set state = 'answered', answer = excluded.answer, answered_at = excluded.answered_at, lease = $1
        where known.state is not distinct from 'received' and known.started_at is null and known.answer is null
    returning run_id, request_id, answer
)
select run_id, request_id, answer, true as fresh from withdrawn
union all
select jobs.run_id, jobs.request_id, jobs.answer, false
from called_off join jobs using (run_id, request_id)
where jobs.answer is not null

-- name: stored_answers
select run_id, request_id, answer from jobs join unnest($1::uuid[], $2::text[]) as t (run_id, request_id)
    using (run_id, request_id)
where answer is not null

-- name: readings
select topic, partition, first, last, life, lives from readings where topic = $1 and partition = any($2)

-- name: reading
-- The records that this life is about to read. Other lives that read the same are counted.
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

-- name: give_away
-- This life reads them no more, and has not ended: it is not counted. The empty life is that of no process.
update readings set life = '', lives = lives - 1 where topic = $1 and partition = any($2) and life = $3
