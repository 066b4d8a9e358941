-- A topic that was deleted and made anew has another id under the same name, and offsets of the old one would pass over
-- what the new one holds.

alter table partitions add column topic_ids jsonb not null default '{}';
comment on column partitions.topic_ids is 'Topic to the id that it had when its partition was claimed: its offsets count in that one.';

create function offsets_in(known jsonb, known_ids jsonb, new_ids jsonb) returns jsonb language sql immutable as $$
    select coalesce(jsonb_object_agg(key, value), '{}') from jsonb_each(known)
    where coalesce(known_ids ->> key = new_ids ->> key, true)
$$;
comment on function offsets_in is 'Offsets without those of topics that have another id now. What has no id keeps its offset.';

drop function claim_partitions;
create function claim_partitions(wanted integer[], new_owner text, kafka_cluster text, new_ids jsonb)
returns setof claimed language sql as $$
    insert into partitions as p (partition, epoch, owner, cluster_id, topic_ids)
    select w, 1, new_owner, kafka_cluster, new_ids from unnest(wanted) w order by w
    on conflict (partition) do update set
        epoch = case p.server_started
            when pg_postmaster_start_time() then p.epoch + 1
            -- The epochs that followed may have been granted already, and forgotten: begin beyond them.
            else greatest(p.epoch + 1, (extract(epoch from clock_timestamp()) * 1000000)::bigint)
        end,
        owner = excluded.owner,
        offsets = case
            when p.cluster_id = excluded.cluster_id then offsets_in(p.offsets, p.topic_ids, excluded.topic_ids)
            else '{}'
        end,
        topic_ids = case
            when p.cluster_id = excluded.cluster_id then p.topic_ids || excluded.topic_ids
            else excluded.topic_ids
        end,
        cluster_id = excluded.cluster_id,
        claimed_at = now(),
        server_started = pg_postmaster_start_time()
    returning partition, epoch, offsets
$$;
comment on function claim_partitions is
    'Become the owner: a new epoch fences every earlier owner. Offsets of another cluster, or of a topic that was made anew, '
    'mean nothing and are dropped.';
