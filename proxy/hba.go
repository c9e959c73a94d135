package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Methods of authentication, named as in pg_hba.conf.
const (
	methodTrust    = "trust"
	methodReject   = "reject"
	methodScram    = "scram-sha-256"
	methodMD5      = "md5"
	methodPassword = "password"
	methodCert     = "cert"
)

// hbaDefault are the rules if there are none: as PostgreSQL's own door behind a proxy.
var hbaDefault = []string{"local all all scram-sha-256", "host all all all scram-sha-256"}

// hbaClient is what a rule is matched against.
type hbaClient struct {
	local, tls     bool
	addr           netip.Addr // of a client that is not local
	user, database string
	// replication is a physical replication connection, which has no database.
	replication bool
	// roles are those that user is a member of, itself among them; none if it does not exist.
	// They are known only where rules ask for them (hba_groups.go).
	roles     []string
	knowRoles bool
}

// hbaRule is one line, as of pg_hba.conf (PostgreSQL's manual, client-authentication).
type hbaRule struct {
	kind             string // local, host, hostssl, hostnossl
	databases, users []hbaToken
	addrs            netip.Prefix // not valid: all
	method           string
	userMap          string
	// clientCert is verify-ca or verify-full: a certificate besides the method.
	clientCert string
}

// hbaToken is a word; quotes take its special meaning away, but for that of a slash.
type hbaToken struct {
	text   string
	quoted bool
	re     *regexp.Regexp // of a database or user that begins with a slash
}

func (t hbaToken) is(keyword string) bool { return !t.quoted && t.text == keyword }

// parseHBA reads rules, and says everything that is wrong with them.
func parseHBA(lines []string) ([]hbaRule, error) {
	if len(lines) == 0 {
		lines = hbaDefault
	}
	var rules []hbaRule
	var errs []error
	for i, line := range lines {
		fields, err := hbaFields(line)
		if err == nil && len(fields) == 0 {
			continue
		}
		var r hbaRule
		if err == nil {
			r, err = parseHBARule(fields)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("proxy.hba[%d]: %w", i, err))
			continue
		}
		rules = append(rules, r)
	}
	return rules, errors.Join(errs...)
}

// hbaFields splits a line into fields, and fields into the words between their commas.
func hbaFields(line string) ([][]hbaToken, error) {
	var fields [][]hbaToken
	var field []hbaToken
	isList := false // a comma was the last thing seen
	for rest := line; ; {
		trimmed := strings.TrimLeft(rest, " \t")
		if trimmed == "" || trimmed[0] == '#' {
			break
		}
		if trimmed[0] == ',' {
			isList, rest = true, trimmed[1:]
			continue
		}
		if !isList && len(field) > 0 {
			fields, field = append(fields, field), nil
		}
		var tok hbaToken
		var err error
		if tok, rest, err = hbaWord(trimmed); err != nil {
			return nil, err
		}
		field, isList = append(field, tok), false
	}
	if len(field) > 0 {
		fields = append(fields, field)
	}
	return fields, nil
}

func hbaWord(s string) (tok hbaToken, rest string, err error) {
	if s[0] == '"' {
		end := strings.IndexByte(s[1:], '"')
		if end < 0 {
			return tok, "", errors.New("a quote is not closed")
		}
		rest = s[end+2:]
		if rest != "" && !strings.ContainsRune(" \t,#", rune(rest[0])) {
			return tok, "", fmt.Errorf("%q: a quote ends inside a word", s)
		}
		return hbaToken{text: s[1 : 1+end], quoted: true}, rest, nil
	}
	end := strings.IndexAny(s, " \t,#")
	if end < 0 {
		end = len(s)
	}
	if strings.Contains(s[:end], `"`) {
		return tok, "", fmt.Errorf("%q: a quote begins inside a word", s[:end])
	}
	return hbaToken{text: s[:end]}, s[end:], nil
}

func parseHBARule(fields [][]hbaToken) (r hbaRule, err error) {
	r.kind = fields[0][0].text
	if !slices.Contains([]string{"local", "host", "hostssl", "hostnossl"}, r.kind) {
		return r, fmt.Errorf("%q is not one of local, host, hostssl, hostnossl", r.kind)
	}
	least := 5
	if r.kind == "local" {
		least = 4
	}
	if len(fields) < least {
		return r, errors.New("too few fields: type, database, user, address (but for local), method")
	}
	r.databases, r.users = fields[1], fields[2]
	for _, list := range [][]hbaToken{r.databases, r.users} {
		for i := range list {
			if err := list[i].compile(); err != nil {
				return r, err
			}
		}
	}
	at := 3
	if r.kind != "local" {
		if r.addrs, at, err = hbaAddress(fields); err != nil {
			return r, err
		}
	}
	if len(fields) <= at {
		return r, errors.New("the method is missing")
	}
	r.method = fields[at][0].text
	return r, r.options(fields[at+1:])
}

// hbaAddress reads the address, of one field or, with a mask, two; at is the field behind it.
func hbaAddress(fields [][]hbaToken) (p netip.Prefix, at int, err error) {
	text := fields[3][0].text
	if fields[3][0].is("all") {
		return p, 4, nil
	}
	if p, err = netip.ParsePrefix(text); err == nil {
		return p.Masked(), 4, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || len(fields) < 5 {
		return p, 0, fmt.Errorf("address %q is not all, nor a network such as 10.0.0.0/8 (host names "+
			"are not looked up)", text)
	}
	mask, err := netip.ParseAddr(fields[4][0].text)
	if err != nil || mask.BitLen() != addr.BitLen() {
		return p, 0, fmt.Errorf("address %q has no length and no mask", text)
	}
	bits, ended := 0, false
	for _, b := range mask.AsSlice() {
		for i := 7; i >= 0; i-- {
			one := b>>i&1 == 1
			if one && ended {
				return p, 0, fmt.Errorf("mask %q has gaps", fields[4][0].text)
			}
			if ended = !one; one {
				bits++
			}
		}
	}
	p, err = addr.Prefix(bits)
	return p, 5, err
}

// options reads what follows the method, and checks what belongs together.
func (r *hbaRule) options(fields [][]hbaToken) error {
	for _, f := range fields {
		name, value, _ := strings.Cut(f[0].text, "=")
		switch {
		case name == "map" && value != "" && r.method == methodCert:
			r.userMap = value
		case name == "clientcert" && r.kind == "hostssl" &&
			(value == "verify-ca" || value == "verify-full"):
			r.clientCert = value
		default:
			return fmt.Errorf("option %q is not supported here", f[0].text)
		}
	}
	switch r.method {
	case methodTrust, methodReject, methodScram, methodMD5, methodPassword:
	case methodCert:
		if r.kind != "hostssl" {
			return errors.New("cert needs hostssl")
		}
	default:
		return fmt.Errorf("method %q is not one of trust, reject, scram-sha-256, md5, password, cert",
			r.method)
	}
	return nil
}

// needsCertificate tells that clients must be asked for one.
func (r *hbaRule) needsCertificate() bool { return r.method == methodCert || r.clientCert != "" }

// matchHBA returns the first rule for a client.
func matchHBA(rules []hbaRule, c hbaClient) (hbaRule, bool) {
	for _, r := range rules {
		if r.matches(c) {
			return r, true
		}
	}
	return hbaRule{}, false
}

func (r *hbaRule) matches(c hbaClient) bool {
	return r.matchesHost(c) && slices.ContainsFunc(r.users, c.isUser) &&
		slices.ContainsFunc(r.databases, c.isDatabase)
}

func (r *hbaRule) matchesHost(c hbaClient) bool {
	switch {
	case (r.kind == "local") != c.local, r.kind == "hostssl" && !c.tls,
		r.kind == "hostnossl" && c.tls:
		return false
	}
	return c.local || !r.addrs.IsValid() || r.addrs.Contains(c.addr.Unmap())
}

// isUser tells that a word of the users means the client's.
func (c *hbaClient) isUser(t hbaToken) bool {
	switch {
	case t.isGroup():
		return slices.Contains(c.roles, t.text[1:])
	case t.is("all"):
		return true
	case t.re != nil:
		return t.re.MatchString(c.user)
	}
	return t.text == c.user
}

// isDatabase is the same for the databases; a keyword is no name.
func (c *hbaClient) isDatabase(t hbaToken) bool {
	switch {
	case c.replication || t.is("replication"):
		return c.replication && t.is("replication")
	case t.is("all"):
		return true
	case t.is("sameuser"):
		return c.user == c.database
	case t.isSameRole():
		return slices.Contains(c.roles, c.database)
	case t.re != nil:
		return t.re.MatchString(c.database)
	}
	return t.text == c.database
}

// userMap tells which certificates may log in as whom: one line, as of pg_ident.conf.
type userMap struct {
	name   string
	system hbaToken
	re     *regexp.Regexp // of a system name that begins with a slash
	user   string
}

// parseUserMaps reads lines of map, name in the certificate, role. A name that begins with a slash
// is a regular expression, of which \1 in the role is the first group.
func parseUserMaps(lines []string) ([]userMap, error) {
	var maps []userMap
	var errs []error
	for i, line := range lines {
		fields, err := hbaFields(line)
		if err == nil && len(fields) == 0 {
			continue
		}
		if err == nil && len(fields) != 3 {
			err = errors.New("not three fields: map, name in the certificate, role")
		}
		m := userMap{}
		if err == nil {
			m = userMap{name: fields[0][0].text, system: fields[1][0], user: fields[2][0].text}
			err = checkMapped(fields[2][0])
		}
		if err == nil {
			if text, ok := strings.CutPrefix(m.system.text, "/"); ok && !m.system.quoted {
				m.re, err = regexp.Compile(text)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("proxy.user_maps[%d]: %w", i, err))
			continue
		}
		maps = append(maps, m)
	}
	return maps, errors.Join(errs...)
}

// checkMapped refuses what PostgreSQL 16 and newer give a meaning in the place of a map's role.
func checkMapped(t hbaToken) error {
	if t.is("all") || strings.HasPrefix(t.text, "/") || t.isGroup() {
		return fmt.Errorf("role %q: a name is needed; all, groups and regular expressions are not "+
			"supported in its place", t.text)
	}
	return nil
}

// mayBe tells whether who has a certificate of that name may log in as user; without a map the two
// are the same.
func mayBe(maps []userMap, name, system, user string) bool {
	if name == "" {
		return system != "" && system == user
	}
	for _, m := range maps {
		if m.name != name {
			continue
		}
		want := m.user
		if m.re != nil {
			groups := m.re.FindStringSubmatch(system)
			if groups == nil {
				continue
			}
			if len(groups) > 1 {
				want = strings.Replace(want, `\1`, groups[1], 1)
			}
		} else if m.system.text != system {
			continue
		}
		if want == user {
			return true
		}
	}
	return false
}
