package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The first line that matches decides alone, as in hba; words mean what they mean there.
func TestSessionRulesMatch(t *testing.T) {
	rules, err := parseSessionRules([]string{
		"# nothing",
		`reports,"all" all hold_timeout=5s`,
		"all batch,/^etl_ hold_timeout=10m journal_bytes_max=1048576",
		"all batch hold_timeout=0s",
		"sameuser all hold_notice_after=0s",
		"orders app hold_timeout=0s hold_notice_after=1s",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, database string
		line           int
	}{
		{"app", "reports", 2}, {"app", "all", 2}, {"batch", "reports", 2}, {"batch", "orders", 3},
		{"etl_1", "orders", 3}, {"my_etl_1", "orders", 0}, {"joe", "joe", 5}, {"app", "orders", 6},
		{"app", "other", 0}, {"APP", "orders", 0},
	} {
		r := ruleOf(rules, poolOwner{user: c.user, database: c.database})
		if got := r != nil && r.line == c.line; got != (c.line > 0) {
			t.Errorf("%s in %s: %+v, want line %d", c.user, c.database, r, c.line)
		}
	}
	// What a line does not name is the general limit, 0 is one.
	p := &Proxy{cfg: DefaultConfig()}
	s := &session{proxy: p, account: newAccount(nil)}
	for i, want := range []string{"1m0s 5s 1048576", "5s 5s 1048576", "10m0s 5s 1048576",
		"0s 5s 1048576", "1m0s 0s 1048576", "0s 1s 1048576"} {
		if i > 0 {
			s.account.rule = &rules[i-1]
		}
		got := fmt.Sprint(s.holdTimeout(), " ", s.holdNoticeAfter(), " ", s.journalBytesMax())
		if got != want {
			t.Errorf("limits %d: %s, want %s", i, got, want)
		}
	}
}

func TestSessionRulesThatAreRefused(t *testing.T) {
	for line, words := range map[string]string{
		"all":                                     "too few fields",
		"all app":                                 "too few fields",
		"all app hold_timeout":                    "must be 0s to 24h",
		"all app hold_timeout=-1ms":               "must be 0s to 24h",
		"all app hold_timeout=24h1ns":             "must be 0s to 24h",
		"all app hold_timeout=5":                  "must be 0s to 24h",
		"all app hold_notice_after=-1s":           "must be 0s to 24h",
		"all app journal_bytes_max=0":             "must be 1 to",
		"all app journal_bytes_max=2147483648":    "must be 1 to",
		"all app hold_timeout=1s hold_timeout=2s": "there twice",
		"all app hold_timeout=1s,2s":              "one value",
		"all app hold_sessions_max=1":             "is not one of",
		"all +staff hold_timeout=1s":              "groups",
		"samerole app hold_timeout=1s":            "groups",
		"replication app hold_timeout=1s":         "not held",
		"all /( hold_timeout=1s":                  "missing closing )",
		`all "app hold_timeout=1s`:                "a quote is not closed",
		"all @file hold_timeout=1s":               "files are not included",
	} {
		cfg := DefaultConfig()
		cfg.SessionLimits = []string{"all joe hold_timeout=1s", line}
		err := cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), "proxy.session_limits[1]: ") ||
			!strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", line, err, words)
		}
	}
	many := make([]string, sessionRulesMax+1)
	if _, err := parseSessionRules(many); err == nil {
		t.Error("any number of lines")
	}
	if d := holdLongest; d != 24*time.Hour {
		t.Errorf("the texts above say 24h, and it is %s", d)
	}
}
