-- Fills the tables with copies of one finished run, set by set. Chance is by hash of the run's number, so that
-- every database of a size is the same; times, tenants, tools and errors vary as they do in life.

-- name: pick
-- One slice of run numbers, from $1 up to $2, spread over the time from $3 to $4 ms in proportion to all $5.
create temp table picked on commit drop as
select
    n,
    (lpad(to_hex(ms), 12, '0') || '7' || substr(h, 1, 3) || '8' || substr(h, 5, 15))::uuid as run_id,
    to_timestamp(ms / 1000.0) as at,
    case
        when n % 100000 = 7 then 'rare'
        when chance % 100 < 30 then 'acme'
        else 'tenant-' || (chance / 100 % 1000)::text
    end as tenant,
    case when chance % 97 < 60 then 'five-steps' else 'playbook-' || (chance % 97)::text end as playbook,
    case
        when chance % 1009 < 950 then 'succeeded' when chance % 1009 < 980 then 'failed'
        when chance % 1009 < 999 then 'cancelled' else 'escalated'
    end as status
from (
    select
        n, md5('run ' || n) as h, ('x' || substr(md5('chance ' || n), 1, 7))::bit(28)::integer as chance,
        $3::bigint + (($4::bigint - $3::bigint) * (n::numeric / $5::bigint))::bigint as ms
    from generate_series($1::bigint, $2::bigint - 1) as n
) as numbered

-- name: journal
insert into executor.journal_commits (run_id, seq, at, events)
select p.run_id, t.seq, p.at + make_interval(secs => t.seq * 0.002), t.events
from picked as p cross join template_journal as t
order by p.run_id, t.seq

-- name: runs
insert into executor.runs
select
    p.run_id, p.tenant, 'task-' || md5(p.n::text), 'user:ana', p.playbook, t.playbook_version, 0, p.status,
    case when p.status in ('failed', 'escalated') then 'tool_unavailable' end, null, t.revision, t.steps_used,
    t.tool_calls, t.tokens, t.usd_micros, t.replans, p.at, p.at + interval '40 ms',
    case when p.status <> 'escalated' then p.at + interval '40 ms' end, null, t.seq
from picked as p cross join template_run as t
order by p.run_id

-- name: steps
insert into executor.steps (run_id, step_id, revision, operation, status, attempts, error_code, started_at, finished_at)
select
    run_id, step_id, revision,
    case
        when chance % 100003 = 0 then 'fax.send'
        when chance % 1009 = 0 then 'tax.file'
        else (array['kb.search', 'helpdesk.reply', 'model.draft', 'crm.lookup', 'mail.send'])[k]
    end,
    status, attempts,
    case
        when chance / 7 % 100003 = 0 then 'in_doubt'
        when chance / 7 % 1009 = 0 then 'conflict'
        when chance / 7 % 101 = 0 then 'rate_limited'
        when chance / 7 % 53 = 0 then 'timeout'
    end,
    at + make_interval(secs => k * 0.008 - 0.008), at + make_interval(secs => k * 0.008)
from (
    select p.run_id, p.at, t.*, ('x' || substr(md5('step ' || p.n || ' ' || t.k), 1, 7))::bit(28)::integer as chance
    from picked as p
    cross join (select step_id, revision, status, attempts, row_number() over (order by step_id) as k from template_steps) as t
) as made
order by run_id, step_id

-- name: tasks
insert into executor.tasks (tenant, task_id, run_id)
select tenant, 'task-' || md5(n::text), run_id from picked

-- name: jobs
insert into tool_echo.jobs (
    run_id, request_id, tenant, state, partition, request, traceparent, deadline_at, lease, answer,
    received_at, answered_at, published_at
)
select
    p.run_id, p.run_id || ':' || step || ':1', p.tenant, 'published', 0, t.request, t.traceparent, p.at + interval '1 hour', 1,
    t.answer, p.at, p.at, p.at
from picked as p cross join template_job as t cross join unnest(array['a', 'b', 'c', 'd', 'e']) as step
order by p.run_id, step

-- name: effects
insert into tool_echo.effects (
    run_id, idempotency_key, tenant, operation, arguments_hash, state, request_id, result, started_at, finished_at
)
select
    p.run_id, p.run_id || ':b:1', p.tenant, 'echo.echo', md5('arguments'), 'receipt', p.run_id || ':b:1', t.answer, p.at, p.at
from picked as p cross join template_job as t
order by p.run_id

-- name: blobs
insert into claims.blobs (run_id, hash, tenant, body, created_at)
select run_id, md5(n::text), tenant, decode(repeat(md5(n::text), 1000), 'hex'), at from picked where n % 1000 = 0
