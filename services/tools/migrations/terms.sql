-- Chinese, Japanese, Thai and their like put no spaces between words, and Korean joins particles to them: what the parser
-- takes for one word is a whole sentence. Such runs are kept as the pairs of their characters, so that a term is found
-- wherever it stands.
-- More than one schema has these functions, and each its own.

create or replace function unspaced() returns text language sql immutable parallel safe
    return '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf'
        || '\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff';
comment on function unspaced is 'Characters of scripts without spaces between words, as a part of a regular expression.';

create or replace function pairs(run text, is_question boolean) returns text language sql immutable parallel safe return (
    select string_agg(one || coalesce(next, ''), ' ' order by place)
    from (
        select one, place, lead(one) over (order by place) as next, count(*) over () as length
        from regexp_split_to_table(run, '') with ordinality as part (one, place)
    ) as pair
    where next is not null or not is_question or length = 1
);
comment on function pairs is 'AB BC C of ABC, so that what begins with a character is found; of a question AB BC.';

create or replace function terms(body text, is_question boolean) returns text language sql immutable parallel safe return
    -- Half of a width and full width are the same character; so are an accent behind its letter and the letter with it,
    -- and the ligatures of printed text and their letters.
    case when body ~ ('[' || unspaced() || '\u0300-\u036f\ufb00-\ufb06\uff00-\uffef]') then (
        select string_agg(
            case when run[1] ~ ('^[' || unspaced() || ']') then pairs(run[1], is_question) else run[1] end,
            ' ' order by place
        )
        from regexp_matches(normalize(body, nfkc), '[' || unspaced() || ']+|[^' || unspaced() || ']+', 'g')
            with ordinality as part (run, place)
    ) else body end;
comment on function terms is 'A text as it is searched: runs without spaces as pairs, everything else as it is.';
