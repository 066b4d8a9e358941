-- A claim does not outlive the server that granted it. One that comes back with an older state (a restored copy, a
-- standby that was behind) has the same epochs as before and less in its journals than an owner remembers.

alter table partitions add column server_started timestamptz not null default pg_postmaster_start_time();
comment on column partitions.server_started is 'When the server started that granted the claim.';

create or replace function claim_partitions(wanted integer[], new_owner text, kafka_cluster text)
returns setof claimed language sql as $$
    insert into partitions as p (partition, epoch, owner, cluster_id)
    select w, 1, new_owner, kafka_cluster from unnest(wanted) w order by w
    on conflict (partition) do update set
        epoch = case p.server_started
            when pg_postmaster_start_time() then p.epoch + 1
            -- The epochs that followed may have been granted already, and forgotten: begin beyond them.
            else greatest(p.epoch + 1, (extract(epoch from clock_timestamp()) * 1000000)::bigint)
        end,
        owner = excluded.owner,
        offsets = case when p.cluster_id = excluded.cluster_id then p.offsets else '{}' end,
        cluster_id = excluded.cluster_id,
        claimed_at = now(),
        server_started = pg_postmaster_start_time()
    returning partition, epoch, offsets
$$;

create function refuse_claim_of_another_start() returns trigger language plpgsql as $$
begin
    raise exception 'the server was started again after partition % was claimed', old.partition using errcode = 'TR001';
end
$$;
comment on function refuse_claim_of_another_start is 'Whoever claimed before must claim again, and read its runs again.';

create trigger partitions_of_another_start before update on partitions for each row
when (new.epoch = old.epoch and old.server_started <> pg_postmaster_start_time())
execute function refuse_claim_of_another_start();
