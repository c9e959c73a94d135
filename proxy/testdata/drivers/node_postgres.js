// node-postgres: simple without parameters, extended with, named statements, its pool.
'use strict';
const fs = require('fs');
const pg = require('pg');

const errorsMax = 20;
const roundsMax = 100000;
const stop = process.env.HF_STOP;
const version = 'pg ' + require('pg/package.json').version;
const errors = [];
const connections = new Set();
let rounds = 0;
let me = 'me-0';
const pool = new pg.Pool({ max: 1 });

pool.on('connect', (client) => connections.add(client.processID));
pool.on('error', (err) => fail('pool', err));

function fail(op, err) {
  errors.push({ op, code: err.code || '', text: String(err) });
}

function want(op, got, expected) {
  if (got !== expected) fail(op, new Error(`got ${got}, want ${expected}`));
}

async function first(on, sql, ...values) {
  const res = await on.query(sql, values);
  return res.rows.length ? Object.values(res.rows[0])[0] : null;
}

async function transaction(work, end) {
  const client = await pool.connect();
  try {
    await client.query('BEGIN');
    await work(client);
    await client.query(end);
  } finally {
    client.release();
  }
}

async function round(n) {
  want('setting', await first(pool, "SELECT current_setting('app.me', true)"), me);
  await pool.query("INSERT INTO ledger VALUES ('it', $1, 's')", [n]);
  want('select', await first(pool,
    "SELECT count(*) FROM ledger WHERE round = $1 AND kind = 's'", n), '1');
  await transaction(async (client) => {
    await client.query("INSERT INTO ledger VALUES ('it', $1, 't')", [n]);
    want('counter', await first(client, 'UPDATE counter SET n = n + 1 RETURNING n'), n);
  }, 'COMMIT');
  if (n % 3 === 0) want('validation', (await pool.query('SELECT 1 AS one')).rows[0].one, 1);
  if (n % 4 === 0) {
    await pool.query({ name: 'ins', text: "INSERT INTO ledger VALUES ('it', $1, 'p')",
      values: [n] });
  }
  if (n % 5 === 0) {
    await transaction((client) => client.query("INSERT INTO ledger VALUES ('it', $1, 'x')", [n]),
      'ROLLBACK');
  }
  if (n % 7 === 0) {
    me = 'me-' + n;
    await pool.query('RESET ALL');
    await pool.query(`SET app.me = '${me}'`);
  }
}

async function main() {
  await pool.query(`SET app.me = '${me}'`);
  while (rounds < roundsMax && errors.length < errorsMax && !fs.existsSync(stop)) {
    try {
      await round(rounds + 1);
      rounds++;
    } catch (err) {
      fail('round', err);
    }
  }
  console.log(JSON.stringify({ version, rounds, errors, connections: connections.size }));
  await pool.end();
}

main();
