-- name: show_breakers
insert into breakers (instance, operation, state, forced_by, since)
select $1, shown.operation, shown.state, nullif(shown.forced_by, ''), now()
from unnest($2::text[], $3::text[], $4::text[]) as shown (operation, state, forced_by)
on conflict (instance, operation) do update set
    state = excluded.state, forced_by = excluded.forced_by, since = excluded.since

-- name: forget_breakers
delete from breakers where instance = $1

-- name: record_control
insert into controls (command_id, operation, breaker, principal, note, at, answer)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (command_id) do nothing
