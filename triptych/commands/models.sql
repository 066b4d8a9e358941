-- name: schemas_with_answers
-- The schemas of the services that keep answers of models.
select table_schema from information_schema.tables where table_name = 'model_answers' order by 1

-- name: answers
-- {schema} is put in, quoted. What has expired and is not dropped yet counts for its hits.
select kind, tier, model, count(*) as kept, sum(hits)::bigint as hits,
    sum(hits * tokens)::bigint as saved_tokens, sum(hits * usd_micros)::bigint as saved_usd_micros
from {schema}.model_answers
where $1::text is null or tenant = $1
group by kind, tier, model
order by kind, tier, model
