-- extension: vector
-- A vector for each fact, gone with it.

create table meanings (
    tenant text not null,
    subject text not null,
    name text not null,
    model text not null,
    embedding vector not null,
    primary key (tenant, subject, name),
    foreign key (tenant, subject, name) references memories on delete cascade
);
comment on table meanings is 'What a fact means, under one model. Vectors of another model are made anew when it is noted again.';

-- The role of the service has its own schema on its search path and no other; what a function body names
-- is looked up when the function is made.
create function as_vector(vector_text text) returns vector language sql immutable return vector_text::vector;
create function likeness(one vector, other vector) returns double precision language sql immutable
    return 1 - (one <=> other);
