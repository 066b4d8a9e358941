-- Payloads in partitions by the age of their run, so that old ones go without a trace in the table.
alter table blobs rename to old_blobs;
alter table old_blobs rename constraint blobs_pkey to old_blobs_pkey;
create table blobs (
    run_id     uuid        not null,
    hash       text        not null,
    tenant     text        not null,
    body       bytea       not null,
    created_at timestamptz not null default now(),
    primary key (run_id, hash)
) partition by range (run_id);
comment on table blobs is 'Payloads by content hash. A blob is written once and never changed; it goes when its run goes.';
create table blobs_default partition of blobs default;
insert into blobs select * from old_blobs;
drop table old_blobs;
