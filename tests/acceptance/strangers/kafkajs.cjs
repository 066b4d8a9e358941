// kafkajs as its users call it: `send KAFKA TOPIC` and `read KAFKA TOPIC ID...`, JSON lines in and out.
const { Kafka, CompressionTypes, CompressionCodecs, Partitioners, logLevel } = require("kafkajs");
const snappy = require("kafkajs-snappy");
const readline = require("node:readline");
const { randomUUID } = require("node:crypto");

CompressionCodecs[CompressionTypes.Snappy] = snappy;
const COMPRESSION = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy };
const bytes = (value) => (value === null || value === undefined ? null : Buffer.from(value, "base64"));
const [verb, address, topic, ...ids] = process.argv.slice(2);
const kafka = new Kafka({ clientId: "stranger", brokers: [address], logLevel: logLevel.ERROR });

async function send() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const record = JSON.parse(line);
    const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
    await producer.connect();
    const headers = {};
    for (const [name, value] of record.headers ?? []) headers[name] = bytes(value);
    const message = { key: bytes(record.key), value: bytes(record.value), headers };
    if (record.partition !== undefined && record.partition !== null) message.partition = record.partition;
    if (record.timestamp !== undefined && record.timestamp !== null) message.timestamp = String(record.timestamp);
    await producer.send({ topic, messages: [message], compression: COMPRESSION[record.compression ?? "none"] });
    await producer.disconnect();
  }
}

async function read() {
  const wanted = new Set(ids);
  const consumer = kafka.consumer({ groupId: `stranger-${randomUUID()}` });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await new Promise((resolve, reject) => {
    consumer.run({
      eachMessage: async ({ message }) => {
        const text = message.value.toString(); // printed as it is: JavaScript rounds large integers
        const outcome = JSON.parse(text);
        if (outcome.final && wanted.delete(outcome.task_id)) console.log(text);
        if (wanted.size === 0) resolve();
      },
    }).catch(reject);
  });
  await consumer.disconnect();
}

(verb === "send" ? send() : read()).catch((error) => {
  console.error(error);
  process.exit(1);
});
