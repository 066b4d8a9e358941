-- Payloads by content hash. A blob is written once and never changed; it goes when its run goes.
CREATE TABLE blobs (
    run_id     uuid        NOT NULL,
    hash       text        NOT NULL,
    tenant     text        NOT NULL,
    body       bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, hash)
);
