package proxy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestHBAFirstMatchDecides(t *testing.T) {
	rules, err := parseHBA([]string{
		"# a comment",
		`local   all  "all",joe   trust`,
		"hostssl replication  rep  10.0.0.0/8  cert map=m",
		"hostnossl sameuser all 10.0.0.0 255.255.0.0 md5 # for those who must",
		`host  "all",app  all  ::1/128  password`,
		"hostssl app app,other 0.0.0.0/0 scram-sha-256 clientcert=verify-full",
		"host all all all reject",
	})
	if err != nil {
		t.Fatal(err)
	}
	four, six := netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("::1")
	for _, c := range []struct {
		name   string
		client hbaClient
		want   string
	}{
		{"local", hbaClient{local: true, user: "joe", database: "x"}, methodTrust},
		{"local, the user all", hbaClient{local: true, user: "all", database: "x"}, methodTrust},
		{"local, somebody", hbaClient{local: true, user: "jim", database: "x"}, ""},
		{"replication", hbaClient{tls: true, addr: four, user: "rep", replication: true}, methodCert},
		{"replication is no database", hbaClient{tls: true, addr: four, user: "rep",
			database: "replication"}, methodReject},
		{"all is no replication", hbaClient{addr: four, user: "x", replication: true}, ""},
		{"same user", hbaClient{addr: four, user: "a", database: "a"}, methodMD5},
		{"a mapped address", hbaClient{addr: netip.MustParseAddr("::ffff:10.0.1.2"), user: "a",
			database: "a"}, methodMD5},
		{"same user with TLS", hbaClient{tls: true, addr: four, user: "a", database: "a"},
			methodReject},
		{"outside the mask", hbaClient{addr: netip.MustParseAddr("10.1.0.1"), user: "a",
			database: "a"}, methodReject},
		{"quoted all is a name", hbaClient{addr: six, user: "x", database: "all"}, methodPassword},
		{"and matches no other", hbaClient{addr: six, user: "x", database: "b"}, methodReject},
		{"list of users", hbaClient{tls: true, addr: four, user: "other", database: "app"},
			methodScram},
	} {
		r, ok := matchHBA(rules, c.client)
		if ok != (c.want != "") || r.method != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, r.method, ok, c.want)
		}
	}
}

func TestHBADefault(t *testing.T) {
	rules, err := parseHBA(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []hbaClient{{local: true}, {addr: netip.MustParseAddr("::1"), tls: true}} {
		if r, ok := matchHBA(rules, c); !ok || r.method != methodScram {
			t.Errorf("%+v: %q", c, r.method)
		}
	}
}

func TestHBAMistakes(t *testing.T) {
	for line, words := range map[string]string{
		"hostgssenc all all all trust":              "is not one of",
		"host all all trust":                        "too few fields",
		"host all all 10.0.0.0 trust":               "no length and no mask",
		"host all all 10.0.0.0 255.0.255.0 trust":   "gaps",
		"host all all example.org trust":            "host names",
		"host all all all peer":                     "method",
		"host all all all cert":                     "hostssl",
		"host all @banned all reject":               "files",
		"host @some all all trust":                  "files",
		"host all joe,@banned all reject":           "files",
		"host all all all trust clientcert=no":      "option",
		"hostssl all all all scram-sha-256 map=x":   "option",
		`host "all all all trust`:                   "quote",
		"host all all 10.0.0.1 255.255.255.255":     "method is missing",
		"hostssl all all all cert clientcert=maybe": "option",
	} {
		_, err := parseHBA([]string{"host all all all trust", line})
		if err == nil || !strings.Contains(err.Error(), words) ||
			!strings.Contains(err.Error(), "proxy.hba[1]") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestUserMaps(t *testing.T) {
	maps, err := parseUserMaps([]string{
		"m  alice  app", `m /^(.*)@example\.org$ \1`, "other bob app",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, system, user string
		want               bool
	}{
		{"", "app", "app", true}, {"", "alice", "app", false}, {"", "", "", false},
		{"m", "alice", "app", true}, {"m", "app", "app", false}, {"m", "bob", "app", false},
		{"m", "carol@example.org", "carol", true}, {"m", "carol@example.org", "dave", false},
		{"m", "carol@example.com", "carol", false}, {"none", "alice", "app", false},
	} {
		if got := mayBe(maps, c.name, c.system, c.user); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if _, err := parseUserMaps([]string{"m a"}); err == nil {
		t.Error("two fields were taken")
	}
	if _, err := parseUserMaps([]string{"m /( b"}); err == nil {
		t.Error("a bad expression was taken")
	}
}

// FuzzHBA: any text is rules or an error.
func FuzzHBA(f *testing.F) {
	f.Add(`hostssl "a b",c all 10.0.0.0 255.0.0.0 cert map=m # x`)
	f.Add(`local all all "trust`)
	f.Fuzz(func(t *testing.T, line string) {
		rules, err := parseHBA([]string{line})
		if err == nil {
			matchHBA(rules, hbaClient{user: line, database: line})
		}
		_, _ = parseUserMaps([]string{line})
	})
}
