-- Runs that were admitted and wait for room to start. A run that finds room at once never has a row here.

create table queue (
    run_id uuid primary key,
    partition integer not null,
    tenant text not null,
    playbook text not null,
    queued_at timestamptz not null
);
comment on table queue is 'Runs of the status queued; within a line of partition, tenant and playbook the oldest is the first.';
create index queue_in_line on queue (partition, tenant, playbook, queued_at, run_id);
