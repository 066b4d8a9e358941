-- A record can end its reader before it is a job. What a partition held already when it was assigned is written down
-- before it is read.

create table readings (
    topic text not null,
    partition integer not null,
    first bigint not null,
    last bigint not null,
    life text not null,
    lives integer not null,
    primary key (partition, topic)
) with (fillfactor = 50);
comment on table readings is 'What the owner of a partition has in hand: who reads it next is careful with the same.';
comment on column readings.life is 'One start of a process; trying again within it is not a death.';
comment on column readings.lives is 'How many lives have had exactly this in hand.';

alter table dead_letters add column cut jsonb;
comment on column dead_letters.cut is
    'What of the record is not kept because it is too large: its whole length in bytes and its SHA-256.';
