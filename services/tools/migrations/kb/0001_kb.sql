-- The knowledge base: articles with their search vectors.

create table articles (
    id text primary key,
    title text not null,
    category text not null,
    updated date not null,
    body text not null,
    search tsvector not null generated always as (
        setweight(to_tsvector('english', title), 'A') || setweight(to_tsvector('english', body), 'B')
    ) stored
);
comment on table articles is 'The shipped articles, loaded by the adapter when it starts.';
create index articles_search on articles using gin (search);
