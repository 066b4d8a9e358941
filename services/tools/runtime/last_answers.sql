-- name: keep_answer
insert into answers as answer (tenant, operation, arguments_hash, result)
values ($1, $2, $3, $4)
on conflict (tenant, operation, arguments_hash) do update set result = excluded.result, answered_at = now()

-- name: last_answer
select result, (extract(epoch from clock_timestamp() - answered_at) * 1000)::float8 as age_ms
from answers where tenant = $1 and operation = $2 and arguments_hash = $3

-- name: prune_answers
delete from answers where answered_at < now() - interval '30 days'
