-- What spares and watches a tool's upstream: rates, breakers, alerts, and the last good answers.

create table buckets (
    name text primary key,
    due_at timestamptz not null,
    told_at timestamptz not null
);
comment on table buckets is 'The rate limits: one row for each operation with a rate, and one for the upstream.';
comment on column buckets.due_at is 'When the next call would be due at the even rate (GCRA).';
comment on column buckets.told_at is 'When the last call that was refused was told to come back.';

create table breakers (
    instance text not null,
    operation text not null,
    state text not null,
    forced_by text,
    since timestamptz not null,
    primary key (instance, operation)
);
comment on table breakers is 'Where the breakers of each process stand, for people; the processes do not read it.';

create table controls (
    command_id text primary key,
    operation text,
    breaker text,
    principal text not null,
    note text not null,
    at timestamptz not null,
    answer text not null
);
comment on table controls is 'What people told this tool to do, who, and what came of it.';

create table alerts (
    operation text not null,
    kind text not null,
    message text not null,
    run_id uuid,
    count integer not null default 1,
    first_at timestamptz not null default now(),
    last_at timestamptz not null default now(),
    closed_at timestamptz,
    primary key (operation, kind)
);
comment on table alerts is 'What is wrong with the upstream by what was seen of it: result, probe or drift.';

create table answers (
    tenant text not null,
    operation text not null,
    arguments_hash text not null,
    result bytea not null,
    answered_at timestamptz not null default now(),
    primary key (tenant, operation, arguments_hash)
);
comment on table answers is 'The last good answers of reads that may stand in when the upstream fails.';
create index answers_by_age on answers (answered_at);
