package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"holdfast/pgwire"
)

func TestHBAGroupsAndExpressions(t *testing.T) {
	rules, err := parseHBA([]string{
		"host all nobody all reject",
		"host all +banned all reject",
		`host samerole +"staff" all trust`, // a group's name cannot be quoted behind its sign
	})
	if err == nil || !strings.Contains(err.Error(), "proxy.hba[2]") {
		t.Errorf("a quote inside a word: %v, %v", rules, err)
	}
	rules, err = parseHBA([]string{
		"host all nobody all reject",
		"host all +banned all reject",
		"host samerole +staff all trust",
		`host "/^app_[0-9]+$",/^x all all md5`,
		"host all /^svc_ 10.0.0.0/8 password",
		`host "+odd" "+odd" all cert`,
		`host sameuser all all scram-sha-256`,
	}[:5])
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("10.0.0.1")
	for _, c := range []struct {
		name, user, database string
		roles                []string
		known                bool
		needs                bool
		want                 string
	}{
		{"decided before", "nobody", "db", nil, false, false, methodReject},
		{"not known", "joe", "db", nil, false, true, ""},
		{"of the group", "joe", "db", []string{"joe", "banned"}, true, false, methodReject},
		{"no such role", "joe", "db", nil, true, false, ""},
		{"role and database", "joe", "staff", []string{"joe", "staff"}, true, false, methodTrust},
		{"role, and not that database", "joe", "db", []string{"joe", "staff"}, true, false, ""},
		{"database, and not that role", "joe", "joe", []string{"joe"}, true, false, ""},
		{"an expression", "joe", "app_12", nil, true, false, methodMD5},
		{"and its end", "joe", "app_12x", nil, true, false, ""},
		{"not anchored at the end", "joe", "x-y", nil, true, false, methodMD5},
		{"of a user", "svc_1", "db", nil, true, false, methodPassword},
		{"of a user, and its start", "a_svc_1", "db", nil, true, false, ""},
	} {
		client := hbaClient{addr: addr, user: c.user, database: c.database, roles: c.roles,
			knowRoles: c.known}
		if got := needsRoles(rules, client); got != c.needs {
			t.Errorf("%s: needs roles: %v", c.name, got)
		}
		if c.needs {
			continue
		}
		if r, ok := matchHBA(rules, client); ok != (c.want != "") || r.method != c.want {
			t.Errorf("%s: %q, want %q", c.name, r.method, c.want)
		}
	}
	if needsRoles(rules, hbaClient{local: true, user: "joe", database: "db"}) {
		t.Error("rules for other connections ask for roles")
	}
	if !hasRoleRules(rules) || hasRoleRules(rules[3:]) {
		t.Error("which rules ask for roles")
	}
}

// Keywords are no names, and names are no keywords.
func TestHBAKeywordsAreNoNames(t *testing.T) {
	rules, err := parseHBA([]string{
		"host sameuser,samerole all all trust", `host "sameuser","samerole","+x" all all md5`,
		`host all "+x" all reject`,
	})
	if err != nil {
		t.Fatal(err)
	}
	for database, want := range map[string]string{
		"joe": methodTrust, "sameuser": methodMD5, "samerole": methodMD5, "+x": methodMD5, "x": "",
	} {
		c := hbaClient{user: "joe", database: database, knowRoles: true, roles: []string{"joe", "x "}}
		if r, _ := matchHBA(rules, c); r.method != want {
			t.Errorf("database %s: %q, want %q", database, r.method, want)
		}
	}
	if r, _ := matchHBA(rules, hbaClient{user: "+x", database: "db", knowRoles: true}); r.method !=
		methodReject {
		t.Errorf("a quoted plus: %q", r.method)
	}
}

// What PostgreSQL would read otherwise is refused, and not read as something else.
func TestHBARefusesWhatItDoesNotSupport(t *testing.T) {
	for line, words := range map[string]string{
		`host a"b" all all trust`:      "quote begins inside",
		`host "a"b all all trust`:      "quote ends inside",
		`host all "a""b" all trust`:    "quote ends inside",
		"host all + all trust":         "missing",
		"host all / all trust":         "missing",
		"host all /( all trust":        "error parsing regexp",
		`host "/(" all all trust`:      "error parsing regexp",
		"host all @file all trust":     "files",
		"include other.conf":           "is not one of",
		"host all all samehost trust":  "host names",
		"host all all .example trust":  "host names",
		"hostnogssenc all all all md5": "is not one of",
	} {
		if _, err := parseHBA([]string{line}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", line, err)
		}
	}
	for _, line := range []string{"m a all", "m a +staff", `m a /^x`, `m a "/^x"`} {
		if _, err := parseUserMaps([]string{line}); err == nil {
			t.Errorf("%s was taken", line)
		}
	}
	if _, err := parseUserMaps([]string{`m a "all"`, `m b "+x"`}); err != nil {
		t.Error(err)
	}
}

// A parameter that is there twice means what it means to the server.
func TestReplicationTwice(t *testing.T) {
	for _, c := range []struct {
		values string
		want   replication
	}{
		{"", notReplication}, {"database", logicalReplication}, {"true", physicalReplication},
		{"database on", logicalReplication}, {"on database", logicalReplication},
		{"database false", notReplication}, {"false database", logicalReplication},
		{"database no 1", logicalReplication}, {"1 0", notReplication},
	} {
		st := &pgwire.Startup{}
		for _, v := range strings.Fields(c.values) {
			st.Params = append(st.Params, pgwire.Param{Name: "replication", Value: v})
		}
		if got, err := replicationOf(st); err != nil || got != c.want {
			t.Errorf("%q: %v, %v", c.values, got, err)
		}
	}
	st := &pgwire.Startup{Params: []pgwire.Param{{Name: "replication", Value: "maybe"},
		{Name: "replication", Value: "off"}}}
	if _, err := replicationOf(st); err == nil {
		t.Error("a value that the server refuses was taken")
	}
}

// A longer name is the one that the server cuts it to: it passes no rule by.
func TestLoginNamesAreCutAsByTheServer(t *testing.T) {
	long := strings.Repeat("d", secretNameMax)
	rules, err := parseHBA([]string{"host " + long + " all all reject", "host all all all md5"})
	if err != nil {
		t.Fatal(err)
	}
	who := loginOf(&pgwire.Startup{Params: []pgwire.Param{{Name: "user", Value: "u"},
		{Name: "database", Value: long + "e"}}}, notReplication)
	if r, _ := matchHBA(rules, hbaClient{user: who.user, database: who.database}); r.method !=
		methodReject {
		t.Errorf("%q", r.method)
	}
}
