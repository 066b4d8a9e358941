-- name: raise_alert
insert into alerts as alert (operation, kind, message, run_id)
values ($1, $2, $3, $4)
on conflict (operation, kind) do update set
    message = excluded.message, run_id = excluded.run_id, last_at = now(),
    count = case when alert.closed_at is null then alert.count + 1 else 1 end,
    first_at = case when alert.closed_at is null then alert.first_at else now() end,
    closed_at = null

-- name: close_alert
update alerts set closed_at = now() where operation = $1 and kind = $2 and closed_at is null

-- name: close_others
update alerts set closed_at = now() where kind = $1 and closed_at is null and not operation = any($2::text[])
