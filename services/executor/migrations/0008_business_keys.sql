-- What makes two writes the same to the business is unique in a tenant, for a time.

create table business_keys (
    tenant text not null,
    key text not null,
    run_id uuid not null,
    step text not null,
    idempotency_key text not null,
    claim bigint not null default 1,
    reserved_at timestamptz not null default now(),
    expires_at timestamptz not null,
    primary key (tenant, key)
);
comment on table business_keys is
    'Which call has a business key. What became of that call stands in the journal of its run.';
comment on column business_keys.claim is 'Grows whenever the key is granted, so that who looked before does not take it.';
create index business_keys_by_run on business_keys (run_id);
