-- What the database says of types, and of the types within them.

-- name: types
with recursive needed (oid) as (
    select unnest($1::oid[])
    union
    select part.oid
    from needed
        join pg_catalog.pg_type as type on type.oid = needed.oid
        cross join lateral (
            select type.typelem where type.typlen = -1 and type.typelem <> 0
            union all select type.typbasetype where type.typtype = 'd'
            union all select rngsubtype from pg_catalog.pg_range
                where type.oid in (rngtypid, (to_jsonb(pg_range) ->> 'rngmultitypid')::oid)
            union all select atttypid from pg_catalog.pg_attribute
                where type.typtype = 'c' and attrelid = type.typrelid and attnum > 0 and not attisdropped
        ) as part (oid)
)
select type.oid, nspname as schema, typname as name,
    case when typlen = -1 and typelem <> 0 then 'array' else case typtype
        when 'd' then 'domain' when 'e' then 'enum' when 'c' then 'composite'
        when 'r' then 'range' when 'm' then 'multirange' else 'scalar'
    end end as kind,
    coalesce(
        case when typlen = -1 then nullif(typelem, 0) end,
        nullif(typbasetype, 0),
        (select rngsubtype from pg_catalog.pg_range
            where type.oid in (rngtypid, (to_jsonb(pg_range) ->> 'rngmultitypid')::oid)),
        0
    ) as element,
    array(
        select attname::text from pg_catalog.pg_attribute
        where typtype = 'c' and attrelid = typrelid and attnum > 0 and not attisdropped order by attnum
    ) as field_names,
    array(
        select atttypid from pg_catalog.pg_attribute
        where typtype = 'c' and attrelid = typrelid and attnum > 0 and not attisdropped order by attnum
    ) as field_types,
    array(
        select enumlabel::text from pg_catalog.pg_enum where enumtypid = type.oid order by enumsortorder
    ) as labels
from needed
    join pg_catalog.pg_type as type on type.oid = needed.oid
    join pg_catalog.pg_namespace as namespace on namespace.oid = typnamespace

-- name: type_named
select type.oid from pg_catalog.pg_type as type
    join pg_catalog.pg_namespace as namespace on namespace.oid = typnamespace
where nspname = $1 and typname = $2
