-- A search by time goes by admission. Rows lie in about that order, so a summary of their pages is enough, and costs an
-- insert nothing.

create index runs_by_admission on runs using brin (started_at) with (pages_per_range = 32);
