-- Callbacks that counted: one whose signature does not cover the address counts at one address.

create table callback_messages (
    digest bytea primary key,
    token text not null,
    heard_at timestamptz not null default now()
);
comment on table callback_messages is 'Callbacks that counted within the last hour, so that none counts at two addresses.';
comment on column callback_messages.digest is 'SHA-256 of what was signed: id, time and body of the message.';
comment on column callback_messages.token is 'The secret part of the address where it counted.';
create index callback_messages_by_age on callback_messages (heard_at);
