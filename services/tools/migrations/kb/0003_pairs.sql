-- include: ../terms.sql
-- Chunks are searched by pairs of characters where a script has no spaces between words; see terms.sql.

alter table chunks drop column search;
alter table chunks add column search tsvector not null generated always as (
    setweight(to_tsvector('english', terms(title, false)), 'A')
        || setweight(to_tsvector('english', terms(body, false)), 'B')
) stored;
create index chunks_search on chunks using gin (search);
