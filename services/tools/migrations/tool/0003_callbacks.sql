-- Calls that an upstream completes by calling back: one row for each idempotency key, made before the call.

create table callbacks (
    run_id uuid not null,
    idempotency_key text not null,
    tenant text not null,
    operation text not null,
    token text not null unique,
    request_id text not null,
    result bytea,
    failed boolean not null default false,
    created_at timestamptz not null default now(),
    called_at timestamptz,
    primary key (run_id, idempotency_key)
);
comment on table callbacks is 'Who is expected to call back. All attempts of a call share one row, and so one address.';
comment on column callbacks.token is 'The secret part of the address.';
comment on column callbacks.request_id is 'The request of the latest attempt.';
comment on column callbacks.failed is 'Whether it said that the work failed; the next attempt gets another address then.';
comment on column callbacks.result is 'What the upstream has said; the first word counts.';
