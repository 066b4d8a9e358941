-- Which version of a playbook new tasks get. The last change wins, whether it came from the folder or from a person, and
-- an executor that starts again finds it.

create table activations (
    number bigint generated always as identity primary key,
    name text not null,
    version text not null,
    folder_version text,
    activated_at timestamptz not null default now(),
    activated_by text not null,
    note text not null default '',
    foreign key (name, version) references playbooks
);
comment on table activations is 'Append-only. The newest of a name says which version new tasks get.';
comment on column activations.folder_version is
    'What the folder of playbooks held then; null when it never held this name. Another version in it is a change.';
create index activations_by_name on activations (name, number desc);
