-- What every tool remembers of its effects: the intent before the call, the receipt with the answer.

create type effect_state as enum ('started', 'refused', 'receipt');
comment on type effect_state is
    'started: a call was begun and its outcome is not known; refused: it is certain that nothing was done; '
    'receipt: it was done, and this is what was answered.';

create table effects (
    run_id uuid not null,
    idempotency_key text not null,
    tenant text not null,
    operation text not null,
    arguments_hash text not null,
    state effect_state not null default 'started',
    attempts integer not null default 1,
    request_id text not null,
    result bytea,
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (run_id, idempotency_key)
);
comment on table effects is 'The effect ledger: one row for each idempotency key of an idempotent or once operation.';
comment on column effects.attempts is 'Attempts whose outcome is not known, this one included; begins anew after a refusal.';
comment on column effects.request_id is 'The request of the latest attempt.';
