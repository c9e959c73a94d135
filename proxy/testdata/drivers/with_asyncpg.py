"""asyncpg: named prepared statements, binary, and its pool, which resets at each release."""
import asyncio

import asyncpg

from common import Tally

t = Tally("asyncpg " + asyncpg.__version__)


async def setup(conn):
    t.me = "me-%d" % t.rounds
    await conn.execute("SET app.me = '%s'" % t.me)


async def one(conn, n):
    t.connections.add(conn.get_server_pid())
    t.want("setting", await conn.fetchval("SELECT current_setting('app.me', true)"), t.me)
    await conn.execute("INSERT INTO ledger VALUES ('it', $1, 's')", n)
    t.want("select", await conn.fetchval(
        "SELECT count(*) FROM ledger WHERE round = $1 AND kind = 's'", n), 1)
    async with conn.transaction():
        await conn.execute("INSERT INTO ledger VALUES ('it', $1, 't')", n)
        t.want("counter", await conn.fetchval("UPDATE counter SET n = n + 1 RETURNING n"), n)
    if n % 3 == 0:
        t.want("validation", await conn.fetchval("SELECT 1"), 1)
    if n % 4 == 0:
        ins = await conn.prepare("INSERT INTO ledger VALUES ('it', $1, 'p')")
        await ins.fetch(n)
    if n % 5 == 0:
        tx = conn.transaction()
        await tx.start()
        await conn.execute("INSERT INTO ledger VALUES ('it', $1, 'x')", n)
        await tx.rollback()
    if n % 7 == 0:
        await conn.execute("RESET ALL")
        await setup(conn)


async def main():
    pool = await asyncpg.create_pool(min_size=1, max_size=1, setup=setup)
    while t.goes_on():
        try:
            # The pool ends each use with: unlock all, CLOSE ALL, UNLISTEN *, RESET ALL.
            async with pool.acquire() as conn:
                await one(conn, t.rounds + 1)
            t.rounds += 1
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as e:
            t.error("round", e)
    t.print()
    await pool.close()


asyncio.run(main())
