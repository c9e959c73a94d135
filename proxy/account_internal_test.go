package proxy

import (
	"strings"
	"testing"

	"holdfast/pgwire"
)

// The order of the parameters makes no difference, but for those that mean the same setting: the
// last of them counts.
func TestPoolLoginKeepsWhatCounts(t *testing.T) {
	key := func(p ...pgwire.Param) string { return newAccount(p).poolLogin() }
	user := pgwire.Param{Name: "user", Value: "app"}
	for _, names := range [][2]string{
		{"TimeZone", "timezone"}, {"work_mem", "sort_mem"},
		{"maintenance_work_mem", "Vacuum_mem"},
	} {
		a, b := pgwire.Param{Name: names[0], Value: "1"}, pgwire.Param{Name: names[1], Value: "2"}
		if key(user, a, b) == key(user, b, a) {
			t.Errorf("%v: logins that end in different values share a connection", names)
		}
	}
	a, b := pgwire.Param{Name: "DateStyle", Value: "ISO"}, pgwire.Param{Name: "jit", Value: "off"}
	if key(user, a, b) != key(b, user, a) {
		t.Error("the order of others makes a difference")
	}
}

// A database's share is counted by the name that the server takes: it cuts longer ones off, and
// takes the user's where none is given.
func TestShareOfADatabaseIsByItsName(t *testing.T) {
	p := &Proxy{shares: newShares(&Config{SessionsPerDatabase: 1}), metrics: newMetrics(nil)}
	long := strings.Repeat("d", secretNameMax)
	claim := func(user string, names ...string) (*session, error) {
		login := []pgwire.Param{{Name: "user", Value: user}}
		for _, name := range names {
			login = append(login, pgwire.Param{Name: "database", Value: name})
		}
		s := &session{proxy: p, account: newAccount(login)}
		return s, s.claim()
	}
	first, err := claim("app", long)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claim("app", "other"); err != nil {
		t.Errorf("another database: %v", err)
	}
	for _, c := range []struct{ user, name string }{
		{"app", long + "x"}, {long, ""}, {long + "y", ""},
	} {
		if s, err := claim(c.user, c.name); err == nil || s.database() != long {
			t.Errorf("user %q, database %q: it is %q, %v", c.user, c.name, s.database(), err)
		}
	}
	if _, err := claim("app", "other", long); err == nil {
		t.Error("the first of two databases counts")
	}
	first.unclaim()
	if _, err := claim("app", long+"x"); err != nil {
		t.Errorf("a place is free: %v", err)
	}
}
