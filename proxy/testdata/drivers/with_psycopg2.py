"""psycopg2: simple protocol, transactions by default, its pool's reset() between uses."""
import psycopg2
import psycopg2.pool

from common import Tally

t = Tally("psycopg2 " + psycopg2.__version__.split()[0])
pool = psycopg2.pool.SimpleConnectionPool(1, 1, "")


def run(cur, sql, *args):
    cur.execute(sql, args)
    return cur.fetchone()[0] if cur.description else None


def begin(cur):
    """The session as this program wants it after a reset."""
    run(cur, "SET app.me = '%s'" % t.me)
    run(cur, "PREPARE ins(int) AS INSERT INTO ledger VALUES ('it', $1, 'p')")


def one(conn, n):
    t.connections.add(conn.get_backend_pid())
    conn.autocommit = True
    cur = conn.cursor()
    t.want("setting", run(cur, "SELECT current_setting('app.me', true)"), t.me)
    run(cur, "INSERT INTO ledger VALUES ('it', %s, 's')", n)
    t.want("select", run(cur, "SELECT count(*) FROM ledger WHERE round = %s AND kind = 's'", n), 1)
    conn.autocommit = False
    with conn, conn.cursor() as tx:
        run(tx, "INSERT INTO ledger VALUES ('it', %s, 't')", n)
        t.want("counter", run(tx, "UPDATE counter SET n = n + 1 RETURNING n"), n)
    if n % 5 == 0:
        run(conn.cursor(), "INSERT INTO ledger VALUES ('it', %s, 'x')", n)
        conn.rollback()
    conn.autocommit = True
    if n % 3 == 0:
        t.want("validation", run(cur, "SELECT 1"), 1)
    if n % 4 == 0:
        run(cur, "EXECUTE ins(%s)", n)
    if n % 7 == 0:
        t.me = "me-%d" % n
        run(cur, "DISCARD ALL")
        begin(cur)
    if n % 11 == 0:
        t.me = "me-%d" % n
        conn.reset()  # sends DISCARD ALL and SET SESSION AUTHORIZATION DEFAULT
        conn.autocommit = True
        begin(cur)


conn = pool.getconn()
conn.autocommit = True
begin(conn.cursor())
while t.goes_on():
    try:
        one(conn, t.rounds + 1)
        t.rounds += 1
    except psycopg2.Error as e:
        t.error("round", e)
        if conn.closed:
            break
        conn.rollback()
    pool.putconn(conn)
    conn = pool.getconn()
t.print()
pool.putconn(conn)
pool.closeall()
