-- What the runs of a tenant have noted of somebody or something, for later runs.

create table memories (
    tenant text not null,
    subject text not null,
    name text not null,
    value text not null,
    source text not null,
    run_id uuid not null,
    step text not null,
    principal text not null,
    remembered_at timestamptz not null default now(),
    expires_at timestamptz not null,
    search tsvector not null generated always as (to_tsvector('english', name || ' ' || value)) stored,
    primary key (tenant, subject, name)
);
comment on table memories is 'One fact a row: a later value of the same name takes its place.';
comment on column memories.subject is 'Of whom or what it is known, for example customer:4711; what is deleted together.';
comment on column memories.source is 'Where the fact comes from, in words; the run and the step that noted it stand beside it.';
create index memories_search on memories using gin (search);
create index memories_expired on memories (expires_at);
