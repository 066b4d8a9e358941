-- A run may hand over to another playbook: the run that comes of it knows its parent.

alter table runs add column parent_run_id uuid;
comment on column runs.parent_run_id is 'The run that handed over to this one.';
create index runs_by_parent on runs (parent_run_id, run_id) where parent_run_id is not null;
