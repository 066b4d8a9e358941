-- Every statement names the tenant: nothing crosses tenants.

-- name: has_vectors
select to_regclass('meanings') is not null

-- name: remember
insert into memories (tenant, subject, name, value, source, run_id, step, principal, expires_at)
select $1, $2, fact.name, fact.value, $3, $4, $5, $6, now() + make_interval(days => $7)
from unnest($8::text[], $9::text[]) as fact (name, value)
order by fact.name
on conflict (tenant, subject, name) do update set
    value = excluded.value, source = excluded.source, run_id = excluded.run_id, step = excluded.step,
    principal = excluded.principal, remembered_at = now(), expires_at = excluded.expires_at

-- name: mean
insert into meanings (tenant, subject, name, model, embedding)
select $1, $2, fact.name, $3, as_vector(fact.embedding)
from unnest($4::text[], $5::text[]) as fact (name, embedding)
order by fact.name
on conflict (tenant, subject, name) do update set model = excluded.model, embedding = excluded.embedding

-- name: recall
-- What was asked for by name, or what is nearest to the question by words or by meaning; without either, the newest.
with asked as (
    -- One character alone is found in every pair that begins with it.
    select string_agg(
        quote_literal(lexeme) || case when lexeme ~ ('^[' || unspaced() || ']$') then ':*' else '' end, ' | '
    )::tsquery as query
    from unnest(to_tsvector('english', terms($4, true)))
), measured as (
    select memories.*, coalesce(ts_rank_cd(search, asked.query, 32), 0) as words, {meaning} as meaning
    from memories cross join asked {meanings}
    where memories.tenant = $1 and memories.subject = $2 and expires_at > now()
        and (cardinality($3::text[]) = 0 or memories.name = any ($3))
)
select name, value, source, run_id, step, remembered_at, expires_at, greatest(words, meaning) as score
from measured
where $4 = '' or words > 0 or meaning >= $5
order by greatest(words, meaning) desc, remembered_at desc, name
limit $6

-- name: forget
with gone as (
    delete from memories where tenant = $1 and subject = $2 and (cardinality($3::text[]) = 0 or name = any ($3))
    returning 1
)
select count(*) from gone

-- name: drop_expired
delete from memories where (tenant, subject, name) in (
    select tenant, subject, name from memories where expires_at <= now() order by expires_at limit $1
    for update skip locked
)
