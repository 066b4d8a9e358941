-- name: note
insert into gaps as gap (tenant, playbook, capability, kind, why, goal, run_id)
select $1, $2, wanted.capability, wanted.kind, wanted.why, $3, $4
from unnest($5::text[], $6::text[], $7::text[]) as wanted (capability, kind, why)
order by wanted.capability
on conflict (tenant, playbook, capability) do update set
    kind = excluded.kind, why = excluded.why, goal = excluded.goal, run_id = excluded.run_id,
    count = gap.count + 1, last_at = now()
