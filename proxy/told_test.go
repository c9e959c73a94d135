package proxy_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// reportedSettings are ones that PostgreSQL reports, with a value that is no default.
var reportedSettings = map[string]string{
	"TimeZone": "Asia/Tokyo", "DateStyle": "German, DMY", "IntervalStyle": "iso_8601",
	"default_transaction_read_only": "on", "standard_conforming_strings": "off",
}

// believes checks that what a client was told of each setting is what the server has.
func believes(t *testing.T, c *pgconn.PgConn, when string) {
	t.Helper()
	for name := range reportedSettings {
		want := exec(t, c, "SHOW "+name)
		if got := c.ParameterStatus(name); got != want {
			t.Errorf("%s: the client was told that %s is %q, it is %q", when, name, got, want)
		}
	}
}

// alter sets what the configuration file of the server says.
func (r *rig) alter(settings map[string]string, reload bool) {
	r.t.Helper()
	for name, value := range settings {
		r.server.Exec("ALTER SYSTEM SET " + name + " = '" + value + "'")
	}
	if reload {
		r.server.Exec("SELECT pg_reload_conf()")
	}
}

// Settings that the server's administrator changes are told to the sessions that have them from
// there, directly from the server or by a new one that differs, and not to those with their own.
func TestChangedSettingsAreTold(t *testing.T) {
	r := newRig(t, nil)
	own := r.connect("")
	exec(t, own, "SET TimeZone = 'Europe/Rome'")
	c, spare := r.connect(""), r.connect("application_name=spare")
	r.leave(spare, "kept")
	// as directly, a session is told with the answer to its next statement
	direct := r.direct()
	r.alter(reportedSettings, true)
	for name, want := range reportedSettings {
		r.eventually(func() bool {
			exec(t, direct, "SELECT 1")
			return direct.ParameterStatus(name) == want
		}, "PostgreSQL tells "+name)
		r.eventually(func() bool {
			exec(t, c, "SELECT 1")
			return c.ParameterStatus(name) == want
		}, "the client is told "+name)
	}
	believes(t, c, "after a reload")
	believes(t, own, "after a reload")
	if got := own.ParameterStatus("TimeZone"); got != "Europe/Rome" {
		t.Errorf("a session's own setting is %q", got)
	}
	r.change()
	exec(t, c, "SELECT 1")
	believes(t, c, "after a change")
	believes(t, own, "after a change")

	other := map[string]string{"TimeZone": "America/Lima", "DateStyle": "SQL, MDY",
		"standard_conforming_strings": "on"}
	r.alter(other, false)
	r.change()
	exec(t, c, "SELECT 1")
	for name, want := range other {
		if got := c.ParameterStatus(name); got != want {
			t.Errorf("the client was not told of the new server's %s: %q", name, got)
		}
	}
	believes(t, c, "on a server that differs")
	exec(t, own, "SELECT 1")
	believes(t, own, "on a server that differs")
	if got := own.ParameterStatus("TimeZone"); got != "Europe/Rome" {
		t.Errorf("a session's own setting is %q after a change", got)
	}
	believes(t, r.connect("application_name=spare"), "a new login")
}
