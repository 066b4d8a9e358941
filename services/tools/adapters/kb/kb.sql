-- name: has_vectors
select to_regclass('embeddings') is not null

-- name: known
select id, content_hash, coalesce(path, id) as path from documents where tenant = $1 and collection = $2

-- name: upsert_documents
insert into documents (tenant, collection, id, title, category, content_hash, path)
select $1, $2, id, title, category, content_hash, path
from unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) as t (id, title, category, content_hash, path)
order by id
on conflict (tenant, collection, id) do update set
    title = excluded.title, category = excluded.category, content_hash = excluded.content_hash, path = excluded.path,
    loaded_at = now()

-- name: upsert_chunks
insert into chunks (tenant, collection, document, position, title, body, content_hash)
select $1, $2, document, position, title, body, content_hash
from unnest($3::text[], $4::int[], $5::text[], $6::text[], $7::text[])
    as t (document, position, title, body, content_hash)
order by document, position
on conflict (tenant, collection, document, position) do update set
    title = excluded.title, body = excluded.body, content_hash = excluded.content_hash

-- name: shorten
delete from chunks using unnest($3::text[], $4::int[]) as t (document, length)
where tenant = $1 and collection = $2 and chunks.document = t.document and chunks.position >= t.length

-- name: prune
delete from documents
where tenant = $1 and collection = $2 and id <> all ($3::text[]) and coalesce(path, id) <> all ($4::text[])
returning id

-- name: embedded
select distinct content_hash from embeddings where model = $1 and content_hash = any ($2::text[])

-- name: embed
insert into embeddings (tenant, model, content_hash, part, embedding)
select $2, $1, content_hash, part, as_vector(embedding)
from unnest($3::text[], $4::int[], $5::text[]) as t (content_hash, part, embedding)
order by content_hash, part
on conflict do nothing

-- name: forget
-- Vectors of what no chunk says any more.
delete from embeddings where tenant = $1
  and not exists (select from chunks where chunks.content_hash = embeddings.content_hash)

-- name: missing
select distinct tenant, content_hash, title, body from chunks
where not exists (
    select from embeddings
    where embeddings.model = $1 and embeddings.content_hash = chunks.content_hash
)
limit $2

-- name: collections
select tenant, collection, count(distinct document)::int as documents, count(*)::int as chunks
from chunks group by tenant, collection order by tenant, collection

-- name: calibration
select words, meaning, base from calibrations where model = $1

-- name: calibrate
insert into calibrations (model, words, meaning, base, questions) values ($1, $2, $3, $4, $5)
on conflict (model) do update set
    words = excluded.words, meaning = excluded.meaning, base = excluded.base, questions = excluded.questions,
    fitted_at = now()

-- name: search
-- Two measures for each chunk that the tenant may see; calibration.py makes one score of them.
-- words: a long ticket and a short article share few words. So any word may match (OR), and rare words count more.
-- It is the geometric mean of two shares, and is high only if both are high.
--   `matched` is the part of the question's words that the chunk has, weighted by rarity ln(1 + N / df).
--            A word that no chunk has weighs most. An off-topic text is full of them.
--   `density` is ts_rank_cd: how close together the words are. Words of titles count more. Flag 1 divides by the
--            logarithm of the chunk's length. Flag 32 maps the rank to 0..1 as rank / (rank + 1).
-- meaning: the cosine between the question and the passage of the chunk that is nearest to it.
with term as (
    -- One character alone is found in every pair that begins with it.
    select lexeme, (
        quote_literal(lexeme) || case when lexeme ~ ('^[' || unspaced() || ']$') then ':*' else '' end
    )::tsquery as query
    from unnest(to_tsvector('english', terms($1, true)))
), anything as (
    select string_agg(query::text, ' | ')::tsquery as query from term
), spoken as materialized (
    -- `offset 0` makes Postgres use the index of words, for a tenant of any size.
    select lexeme, chunks.tenant, collection, document, position from term, lateral (
        select tenant, collection, document, position from chunks where search @@ term.query offset 0
    ) as chunks
    where tenant in ('*', $3) and (cardinality($4::text[]) = 0 or collection = any ($4))
), corpus as (
    select count(*)::float as chunks from chunks
    where tenant in ('*', $3) and (cardinality($4::text[]) = 0 or collection = any ($4))
), weighted as materialized (
    select lexeme, ln(1 + corpus.chunks / greatest(coalesce(found.chunks, 0), 0.5)) as weight
    from corpus cross join term left join (select lexeme, count(*) as chunks from spoken group by lexeme) as found using (lexeme)
), matched as (
    select tenant, collection, document, position, sum(weight) / (select sum(weight) from weighted) as share
    from spoken join weighted using (lexeme)
    group by tenant, collection, document, position
    order by share desc
    limit $11
), near as materialized (
    {near}
), nearest as (
    select tenant, collection, document, position from near join chunks using (content_hash)
    where tenant in ('*', $3) and (cardinality($4::text[]) = 0 or collection = any ($4))
    order by meaning desc
    limit $11
), measured as (
    select chunks.tenant, chunks.collection, chunks.document, chunks.position, chunks.title, chunks.body,
        case when matched.share is null then 0
            else sqrt(matched.share * ts_rank_cd('{0.1, 0.2, 0.4, 1.0}', search, anything.query, 1 | 32))
        end as words,
        coalesce(near.meaning, 0) as meaning
    from (select tenant, collection, document, position from matched union select * from nearest) as candidate
        join chunks using (tenant, collection, document, position)
        cross join anything
        left join matched using (tenant, collection, document, position)
        left join near using (content_hash)
), scored as (
    select *, 1 / (1 + exp(-($5 * words + $6 * meaning + $7))) as score from measured
), best as (
    select distinct on (tenant, collection, document) * from scored
    order by tenant, collection, document, score desc, position
), top as (
    select * from best where score >= $8 order by score desc, collection, document limit $2
)
select top.document as id, top.collection, top.title, category, top.body, words, meaning, score,
    ts_headline('english', top.body, anything.query, 'MaxWords=35, MinWords=15, StartSel="", StopSel=""') as snippet
from top cross join anything
    join documents on (documents.tenant, documents.collection, documents.id) = (top.tenant, top.collection, top.document)
order by score desc, collection, id

-- name: near
-- `materialized`: the question is read once and not for every passage.
with asked as materialized (select as_vector($10) as question)
    select content_hash, max(meaning) as meaning from (
        -- `offset 0`: numbers are grouped, and not vectors.
        select content_hash, likeness(embedding, (select question from asked)) as meaning from embeddings
        where tenant in ('*', $3) and model = $9 offset 0
    ) as passages
    group by content_hash

-- name: far
select null::text as content_hash, null::float8 as meaning where false and $9::text is null and $10::text is null
