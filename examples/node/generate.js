// Streams a completion:  node generate.js 127.0.0.1:9320 'import unittest' 40
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const PROTO = path.join(__dirname, '..', '..', 'protos', 'medha', 'v1', 'inference.proto');
const [address, text, maxTokens] = process.argv.slice(2);
if (!address || !text) {
  console.error("usage: node generate.js HOST:PORT PROMPT [MAX_TOKENS]");
  process.exit(2);
}

const { medha } = grpc.loadPackageDefinition(
  loader.loadSync(PROTO, { keepCase: true, longs: Number, enums: String, oneofs: true }),
);
const client = new medha.v1.Inference(address, grpc.credentials.createInsecure());
const sampling = { temperature: 0, max_tokens: Number(maxTokens || 40) };
const deadline = new Date(Date.now() + 60_000);
const call = client.Generate({ text, settings: { sampling } }, { deadline });

// Ctrl-C ends the request in the server, too.
process.once('SIGINT', () => call.cancel());

call.on('data', ({ event, delta, finished }) => {
  if (event === 'delta') {
    process.stdout.write(delta.text);
  } else if (event === 'finished') {
    const { usage, timings } = finished;
    console.error(`\n${usage.output_tokens} tokens, first after ${timings.ttft_ms.toFixed(0)} ms; ${finished.reason}`);
  }
});
call.on('error', (error) => {
  console.error(`error: ${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on('end', () => client.close());
