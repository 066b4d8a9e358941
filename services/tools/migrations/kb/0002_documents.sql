-- Documents of any source, cut into chunks. The shipped articles are loaded anew when the tool starts.

drop table articles;

create table documents (
    tenant text not null,
    collection text not null,
    id text not null,
    title text not null,
    category text not null,
    content_hash text not null,
    loaded_at timestamptz not null default now(),
    primary key (tenant, collection, id)
);
comment on table documents is 'What the knowledge base knows, one row a document.';
comment on column documents.tenant is 'Who may find it; * is everybody.';
comment on column documents.content_hash is 'Of everything that was loaded; a document that has it still is left alone.';

create table chunks (
    tenant text not null,
    collection text not null,
    document text not null,
    position integer not null,
    title text not null,
    body text not null,
    content_hash text not null,
    search tsvector not null generated always as (
        setweight(to_tsvector('english', title), 'A') || setweight(to_tsvector('english', body), 'B')
    ) stored,
    primary key (tenant, collection, document, position),
    foreign key (tenant, collection, document) references documents on delete cascade
);
comment on table chunks is 'What is found: a part of a document that is short enough to be read by a model.';
create index chunks_search on chunks using gin (search);
create index chunks_content on chunks (content_hash);

create table calibrations (
    model text primary key,
    words double precision not null,
    meaning double precision not null,
    base double precision not null,
    questions integer not null,
    fitted_at timestamptz not null default now()
);
comment on table calibrations is 'How scores are made under an embedding model, where it is not as shipped.';
