-- A task id belongs to the task that came first under it. Another task under the same id is answered `conflict`.

alter table tasks add column fingerprint bytea;
comment on column tasks.fingerprint is 'What the task says, as a hash; null of child runs and of tasks from before.';
