-- extension: vector
-- Vectors, by the content they stand for: a chunk that is loaded again unchanged is not embedded again.

create table embeddings (
    tenant text not null,
    model text not null,
    content_hash text not null,
    part integer not null,
    embedding vector not null,
    primary key (model, content_hash, part)
);
create index embeddings_tenant on embeddings (tenant, model);
comment on table embeddings is 'Of each chunk, a vector for every passage of it.';
comment on column embeddings.content_hash is 'Of tenant, title and body: tenants share no vector.';
comment on column embeddings.embedding is 'Of length 1. How many dimensions it has depends on the model.';

-- The role of the service has its own schema on its search path and no other; what a function body names
-- is looked up when the function is made.
create function as_vector(vector_text text) returns vector language sql immutable return vector_text::vector;
create function likeness(one vector, other vector) returns double precision language sql immutable
    return 1 - (one <=> other);
