// pgjdbc: extended protocol, named on the server from a statement's fifth use, isValid.
import java.io.File;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Properties;
import java.util.Set;

public class Pgjdbc {
    static final int ERRORS_MAX = 20;
    static final int ROUNDS_MAX = 100000;
    static final List<String> errors = new ArrayList<>();
    static final Set<Integer> connections = new HashSet<>();
    static Connection conn;
    static String me = "me-0";

    static void fail(String op, String code, String text) {
        String clean = text.replaceAll("[^ -!#-\\[\\]-~]", " ");
        errors.add("{\"op\":\"" + op + "\",\"code\":\"" + code + "\",\"text\":\"" + clean + "\"}");
    }

    static void want(String op, Object got, Object expected) {
        if (!expected.equals(got)) {
            fail(op, "", "got " + got + ", want " + expected);
        }
    }

    static void update(String sql, Object... args) throws SQLException {
        try (PreparedStatement s = conn.prepareStatement(sql)) {
            for (int i = 0; i < args.length; i++) {
                s.setObject(i + 1, args[i]);
            }
            s.executeUpdate();
        }
    }

    static Object first(String sql, Object... args) throws SQLException {
        try (PreparedStatement s = conn.prepareStatement(sql)) {
            for (int i = 0; i < args.length; i++) {
                s.setObject(i + 1, args[i]);
            }
            try (ResultSet rs = s.executeQuery()) {
                return rs.next() ? rs.getObject(1) : null;
            }
        }
    }

    static void begin() throws SQLException {
        try (Statement s = conn.createStatement()) {
            s.execute("SET app.me = '" + me + "'");
        }
    }

    static void round(int n, PreparedStatement ins) throws SQLException {
        connections.add(conn.unwrap(org.postgresql.PGConnection.class).getBackendPID());
        want("setting", first("SELECT current_setting('app.me', true)"), me);
        update("INSERT INTO ledger VALUES ('it', ?, 's')", n);
        want("select", first("SELECT count(*) FROM ledger WHERE round = ? AND kind = 's'", n), 1L);
        conn.setAutoCommit(false);
        update("INSERT INTO ledger VALUES ('it', ?, 't')", n);
        want("counter", first("UPDATE counter SET n = n + 1 RETURNING n"), n);
        conn.commit();
        if (n % 5 == 0) {
            update("INSERT INTO ledger VALUES ('it', ?, 'x')", n);
            conn.rollback();
        }
        conn.setAutoCommit(true);
        if (n % 3 == 0) {
            want("validation", conn.isValid(60), true);
        }
        if (n % 4 == 0) {
            ins.setInt(1, n);
            ins.addBatch();
            ins.executeBatch();
        }
        if (n % 7 == 0) {
            me = "me-" + n;
            try (Statement s = conn.createStatement()) {
                s.execute(n % 2 == 0 ? "DISCARD ALL" : "RESET ALL");
            }
            begin();
        }
    }

    public static void main(String[] args) throws Exception {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT")
            + "/" + System.getenv("PGDATABASE");
        Properties p = new Properties();
        p.setProperty("user", System.getenv("PGUSER"));
        p.setProperty("password", System.getenv("PGPASSWORD"));
        File stop = new File(System.getenv("HF_STOP"));
        int rounds = 0;
        conn = DriverManager.getConnection(url, p);
        begin();
        PreparedStatement ins = conn.prepareStatement("INSERT INTO ledger VALUES ('it', ?, 'p')");
        while (rounds < ROUNDS_MAX && errors.size() < ERRORS_MAX && !stop.exists()) {
            try {
                round(rounds + 1, ins);
                rounds++;
            } catch (SQLException e) {
                fail("round", e.getSQLState(), e.getMessage());
                if (conn.isClosed()) {
                    break;
                }
                if (!conn.getAutoCommit()) {
                    conn.rollback();
                    conn.setAutoCommit(true);
                }
            }
        }
        System.out.println("{\"version\":\"pgjdbc " + org.postgresql.Driver.class.getPackage()
            .getImplementationVersion() + "\",\"rounds\":" + rounds + ",\"errors\":["
            + String.join(",", errors) + "],\"connections\":" + connections.size() + "}");
        conn.close();
    }
}
