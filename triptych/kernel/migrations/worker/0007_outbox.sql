-- A commit of answers wrote each job a second time when Kafka had acknowledged them. Now one row stands for the commit
-- until then. Nothing else changes, so processes of the version before go on beside new ones: what they have answered is
-- `answered` until they mark it, and is taken over as before.

create table outbox (
    stored_by bigint not null,
    number bigint not null,
    lease bigint not null,
    stored_at timestamptz not null default now(),
    run_ids uuid[] not null,
    primary key (stored_by, number)
) with (toast_tuple_target = 8160);
-- Ids of runs do not compress, so a row of some hundred stays in its page as it is.
alter table outbox alter column run_ids set storage external;
comment on table outbox is 'One row for each commit of answers; deleted when Kafka has them.';
comment on column outbox.stored_by is 'The lease under which the answers were stored; the lease of their jobs.';
comment on column outbox.number is 'Counts the commits of that life. No number is used again.';
comment on column outbox.lease is 'The life that publishes them. It changes when another one takes the row over.';
comment on column outbox.stored_at is 'When that commit began, which is `answered_at` of its jobs.';
comment on column outbox.run_ids is 'The runs of its jobs.';

comment on type job_state is
    'received: waits; started: an attempt that costs money, or a repeated one, is under way; parked: its answer comes '
    'from outside; answered: the answer is stored, and this row alone says that it must be published; published: Kafka '
    'has acknowledged the answer, or a row in outbox says that it must be published.';
