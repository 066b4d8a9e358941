-- A document remembers its file: its id may stand in the file, and a file that cannot be read keeps its document.

alter table documents add column path text;
comment on column documents.path is 'The file that says it, in its folder; null means that it is the id.';

-- Earlier versions loaded the articles of the demo for every tenant. Now the tool searches only what somebody ingested.
delete from documents where tenant = '*' and collection = 'shipped';
