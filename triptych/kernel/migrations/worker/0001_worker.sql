-- What every worker keeps: its leases, its jobs and the records it could not read.

create table leases (
    id bigint generated always as identity primary key,
    instance text not null,
    until timestamptz not null
);
comment on table leases is 'One row for each life of a worker process; a job is leased by naming it.';
create index leases_instance on leases (instance);

create type job_state as enum ('received', 'started', 'answered', 'published');
comment on type job_state is
    'received: waits; started: an attempt that costs money, or a repeated one, is under way; '
    'answered: the answer is stored and must be published; published: Kafka has acknowledged the answer.';

create table jobs (
    run_id uuid not null,
    request_id text not null,
    tenant text not null,
    state job_state not null default 'received',
    partition integer not null,
    request bytea not null,
    traceparent text,
    deadline_at timestamptz not null,
    lease bigint,
    deliveries integer not null default 1,
    answer bytea,
    received_at timestamptz not null default now(),
    started_at timestamptz,
    answered_at timestamptz,
    published_at timestamptz,
    primary key (run_id, request_id)
);
comment on table jobs is 'Inbox and outbox of a worker: one row a request. The primary key drops duplicates.';
comment on column jobs.lease is 'The life of the process that may work on it; null when it was handed back.';
comment on column jobs.deliveries is 'How often it was given out, not counting lives in which it was never begun.';
comment on column jobs.started_at is 'Set once, by the first attempt that was recorded before it began.';
create index jobs_open on jobs (lease) where state <> 'published';

-- The executor's migration has the same table, so that one command shows and replays them all.
create table dead_letters (
    id text primary key,
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    key bytea,
    value bytea,
    headers jsonb not null default '[]',
    code text not null,
    message text not null,
    tenant text not null,
    failed_at timestamptz not null,
    published boolean not null default false
);
comment on table dead_letters is 'Records that could not be understood, with their bytes.';
comment on column dead_letters.id is 'service:topic:partition:offset, so that a redelivered record makes no second row.';
comment on column dead_letters.headers is 'A list of [name, base64 value or null], in the order of the record.';
comment on column dead_letters.code is 'A stable code, for example not_json or invalid_request.';
comment on column dead_letters.published is 'Whether Kafka has acknowledged the event on <prefix>.dead-letters.';
create index dead_letters_unpublished on dead_letters (id) where not published;
