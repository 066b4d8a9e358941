-- Answers of models that may be given again to the same question of the same tenant.

create table model_answers (
    tenant text not null,
    question bytea not null,
    kind text not null,
    tier text not null,
    model text not null,
    answer bytea not null,
    tokens bigint not null,
    usd_micros bigint not null,
    hits bigint not null default 0,
    kept_at timestamptz not null default now(),
    expires_at timestamptz not null,
    primary key (tenant, question)
);
comment on table model_answers is 'The cache of model answers. What is not asked again is gone after its time.';
comment on column model_answers.question is
    'SHA-256 over the tenant, the models of the tier in their order, the prompt and the form of the answer.';
comment on column model_answers.model is 'The model that answered.';
comment on column model_answers.usd_micros is 'What the answer cost when it was given; each hit saves as much.';
comment on column model_answers.hits is 'How often it was given again.';
create index model_answers_expired on model_answers (expires_at);
