-- What a write leaves behind, in the database it writes to and in the same transaction.

-- name: create
create table triptych_ledger (
    idempotency_key text primary key,
    operation text not null,
    tenant text not null,
    arguments_hash text not null,
    result jsonb,
    done_at timestamptz not null default now()
)

-- name: is_there
select to_regclass('triptych_ledger') is not null

-- name: begin
-- Waits for another transaction with the same key, and gives nothing when that one has committed.
insert into triptych_ledger (idempotency_key, operation, tenant, arguments_hash) values ($1, $2, $3, $4)
on conflict do nothing returning true

-- name: known
select operation, arguments_hash, result from triptych_ledger where idempotency_key = $1

-- name: settle
update triptych_ledger set result = $2 where idempotency_key = $1

-- name: limit
select set_config('statement_timeout', $1, true)
