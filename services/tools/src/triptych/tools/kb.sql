-- name: upsert
insert into articles (id, title, category, updated, body)
select * from unnest($1::text[], $2::text[], $3::text[], $4::date[], $5::text[]) as t (id, title, category, updated, body)
order by id
on conflict (id) do update set
    title = excluded.title, category = excluded.category, updated = excluded.updated, body = excluded.body
where (articles.title, articles.category, articles.updated, articles.body)
    is distinct from (excluded.title, excluded.category, excluded.updated, excluded.body)

-- name: prune
delete from articles where id <> all ($1::text[])

-- name: search
-- A long ticket and a short article share few words, so any word may match (OR), and what counts is
-- which ones. The score is the geometric mean of two shares, so both must be high for it to be high:
--   matched: of what is asked, weighted by rarity ln(1 + N / df), the part that the article speaks of.
--            A word that no article has weighs most: an off-topic text is full of them.
--   density: ts_rank_cd, how close together the words stand, titles counting more; 1 divides by the
--            length of the article (logarithmically), 32 maps it to 0..1 as rank / (rank + 1).
with term as (
    select lexeme, quote_literal(lexeme)::tsquery as query from unnest(to_tsvector('english', $1))
), corpus as (
    select count(*)::float as articles from articles
), weighted as (
    select query, ln(1 + corpus.articles / greatest(found.articles, 0.5)) as weight
    from term, corpus, lateral (select count(*)::float as articles from articles where search @@ term.query) as found
), matched as (
    select articles.id, sum(weighted.weight) / (select sum(weight) from weighted) as share
    from articles join weighted on articles.search @@ weighted.query
    group by articles.id
), anything as (
    select string_agg(query::text, ' | ')::tsquery as query from term
)
select articles.id, title, category, body,
    sqrt(matched.share * ts_rank_cd('{0.1, 0.2, 0.4, 1.0}', search, anything.query, 1 | 32)) as score,
    ts_headline('english', body, anything.query, 'MaxWords=35, MinWords=15, StartSel="", StopSel=""') as snippet
from matched join articles using (id), anything
order by score desc, articles.id
limit $2
