-- name: find
update model_answers set hits = hits + 1
where tenant = $1 and question = $2 and expires_at > now()
returning answer, model

-- name: keep
-- A newer answer replaces an older one. The count of hits stays, because those calls were saved.
insert into model_answers (tenant, question, kind, tier, model, answer, tokens, usd_micros, expires_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9))
on conflict (tenant, question) do update set
    model = excluded.model, answer = excluded.answer, tokens = excluded.tokens, usd_micros = excluded.usd_micros,
    kept_at = now(), expires_at = excluded.expires_at

-- name: drop_expired
-- A few at a time, each time when an answer is kept.
delete from model_answers where (tenant, question) in (
    select tenant, question from model_answers where expires_at <= now() order by expires_at limit $1
    for update skip locked
)
