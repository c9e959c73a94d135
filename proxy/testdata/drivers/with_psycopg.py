"""psycopg 3: extended protocol, statements prepared at their sixth use, pipelines."""
import psycopg

from common import Tally

t = Tally("psycopg %s (%s)" % (psycopg.__version__, psycopg.pq.__impl__))
conn = psycopg.connect("", autocommit=True)


def run(sql, *args, **more):
    cur = conn.execute(sql, args, **more)
    return cur.fetchone()[0] if cur.description else None


def begin():
    run("SET app.me = '%s'" % t.me)


def transaction(n):
    with conn.transaction():
        run("INSERT INTO ledger VALUES ('it', %s, 't')", n)
        t.want("counter", run("UPDATE counter SET n = n + 1 RETURNING n"), n)


def one(n):
    t.connections.add(conn.info.backend_pid)
    t.want("setting", run("SELECT current_setting('app.me', true)"), t.me)
    run("INSERT INTO ledger VALUES ('it', %s, 's')", n)
    t.want("select", run("SELECT count(*) FROM ledger WHERE round = %s AND kind = 's'", n), 1)
    if n % 6 == 0:
        with conn.pipeline(), conn.transaction():
            run("INSERT INTO ledger VALUES ('it', %s, 't')", n)
            cur = conn.execute("UPDATE counter SET n = n + 1 RETURNING n")
        t.want("counter", cur.fetchone()[0], n)
    else:
        transaction(n)
    if n % 3 == 0:
        t.want("validation", run("SELECT 1"), 1)
    if n % 4 == 0:
        run("INSERT INTO ledger VALUES ('it', %s, 'p')", n, prepare=True)
    if n % 5 == 0:  # after a ROLLBACK the driver sends DEALLOCATE ALL
        with conn.transaction():
            run("INSERT INTO ledger VALUES ('it', %s, 'x')", n)
            raise psycopg.Rollback()
    if n % 7 == 0:
        t.me = "me-%d" % n
        run("RESET ALL")
        begin()


begin()
while t.goes_on():
    try:
        one(t.rounds + 1)
        t.rounds += 1
    except psycopg.Error as e:
        t.error("round", e)
        if conn.closed:
            break
t.print()
conn.close()
