-- name: versions
-- Versions of a playbook, or of all, the one that was activated last first.
with newest as (select distinct on (name) number, name, version from executor.activations order by name, number desc)
select p.name, p.version, n.version is not null as active, p.deployed_at,
    a.activated_at, coalesce(a.activated_by, '') as activated_by, coalesce(a.note, '') as note
from executor.playbooks p
left join newest n using (name, version)
left join lateral (
    select * from executor.activations a where a.name = p.name and a.version = p.version order by number desc limit 1
) as a on true
where %(name)s::text is null or p.name = %(name)s
order by p.name, a.number desc nulls last, p.deployed_at desc

-- name: deploy
-- Keep a version, if it is new.
insert into executor.playbooks (name, version, definition)
values (%(name)s, %(version)s, %(definition)s)
on conflict do nothing

-- name: activate
-- Let new tasks have a version. The row keeps what the folder had, so that only a later change there counts.
insert into executor.activations (name, version, folder_version, activated_by, note)
values (%(name)s, %(version)s, (
    select folder_version from executor.activations where name = %(name)s order by number desc limit 1
), %(by)s, %(note)s)
