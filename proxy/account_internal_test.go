package proxy

import (
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
