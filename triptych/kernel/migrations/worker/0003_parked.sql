-- A job may wait for somebody outside: it has no lease then, and nobody takes it over before its deadline.

alter type job_state add value 'parked' before 'answered';
comment on type job_state is
    'received: waits; started: an attempt that costs money, or a repeated one, is under way; parked: its answer comes '
    'from outside; answered: the answer is stored and must be published; published: Kafka has acknowledged the answer.';
