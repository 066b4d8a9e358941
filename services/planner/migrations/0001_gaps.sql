-- What plans wanted of tools and could not have.

create table gaps (
    tenant text not null,
    playbook text not null,
    capability text not null,
    kind text not null,
    why text not null,
    goal text not null,
    run_id uuid not null,
    count integer not null default 1,
    first_at timestamptz not null default now(),
    last_at timestamptz not null default now(),
    primary key (tenant, playbook, capability)
);
comment on table gaps is 'An operation or an ability that a plan wanted: unknown, not_allowed, or missing by the model''s own word.';
