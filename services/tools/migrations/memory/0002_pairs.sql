-- include: ../terms.sql
-- Facts are searched by pairs of characters where a script has no spaces between words; see terms.sql.

alter table memories drop column search;
alter table memories add column search tsvector not null
    generated always as (to_tsvector('english', terms(name || ' ' || value, false))) stored;
create index memories_search on memories using gin (search);
