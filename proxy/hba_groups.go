package proxy

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"holdfast/pgwire"
)

// isGroup tells of a word of the users that means the members of a role.
func (t hbaToken) isGroup() bool { return !t.quoted && len(t.text) > 1 && t.text[0] == '+' }

// isSameRole tells of a word of the databases that means those named as a role of the user.
func (t hbaToken) isSameRole() bool { return t.is("samerole") || t.is("samegroup") }

// compile makes the regular expression of a word that begins with a slash, with or without quotes,
// as PostgreSQL does from 16 on, and refuses what is not supported.
func (t *hbaToken) compile() (err error) {
	switch {
	case !t.quoted && len(t.text) > 1 && t.text[0] == '@':
		return fmt.Errorf("%q: files are not included", t.text)
	case !t.quoted && t.text == "+":
		return errors.New(`"+": the name of a role is missing behind it`)
	case t.text == "/":
		return errors.New(`"/": a regular expression is missing behind it`)
	case strings.HasPrefix(t.text, "/"):
		if t.re, err = regexp.Compile("(?s)" + t.text[1:]); err != nil {
			return fmt.Errorf("%q: %w", t.text, err)
		}
	}
	return nil
}

// needsRoles tells that the rules cannot be judged for a client whose roles are not known: one that
// asks for them is reached before any that surely matches.
func needsRoles(rules []hbaRule, c hbaClient) bool {
	if c.knowRoles {
		return false
	}
	for i := range rules {
		r := &rules[i]
		if !r.matchesHost(c) {
			continue
		}
		byUser := slices.ContainsFunc(r.users, c.isUser)
		byDatabase := slices.ContainsFunc(r.databases, c.isDatabase)
		mayUser := byUser || slices.ContainsFunc(r.users, hbaToken.isGroup)
		mayDatabase := byDatabase ||
			!c.replication && slices.ContainsFunc(r.databases, hbaToken.isSameRole)
		switch {
		case byUser && byDatabase:
			return false
		case mayUser && mayDatabase:
			return true
		}
	}
	return false
}

// hasRoleRules tells that any rule asks for the roles of users.
func hasRoleRules(rules []hbaRule) bool {
	return slices.ContainsFunc(rules, func(r hbaRule) bool {
		return slices.ContainsFunc(r.users, hbaToken.isGroup) ||
			slices.ContainsFunc(r.databases, hbaToken.isSameRole)
	})
}

// rolesMax bounds the roles that one user may be a member of, where rules ask for them.
const rolesMax = 1000

// errTooManyRoles is a user of more; to leave some out could let it past a rule that rejects.
var errTooManyRoles = errors.New("the user is a member of too many roles")

// rolesSQL gives a row for each role that a user is a member of, directly or not, and for itself.
// As for PostgreSQL's own rules (is_member_of_role_nosuper), a superuser is a member of no other
// role than it was granted.
func rolesSQL(user string) string {
	return " UNION ALL SELECT NULL, r.rolname::text FROM (" +
		"WITH RECURSIVE m(id) AS (SELECT oid FROM pg_roles WHERE rolname = " + quoteLiteral(user) +
		" UNION SELECT a.roleid FROM pg_auth_members a JOIN m ON a.member = m.id) " +
		"SELECT id FROM m) AS m JOIN pg_roles r ON r.oid = m.id"
}

// knowRoles completes what is known of a client if its rules need it: it asks the primary, or goes
// on with what was cached.
func (d *door) knowRoles(ctx context.Context, c hbaClient) (hbaClient, error) {
	if !needsRoles(d.proxy.hba, c) {
		return c, nil
	}
	e, err := d.proxy.cache.entry(ctx, c.user)
	if err != nil {
		return c, err
	}
	c.roles, c.knowRoles = e.roles, true
	return c, nil
}

// rolesOf reads the answer to rolesSQL; the row without a role is that of the secret.
func rolesOf(rows [][][]byte) ([]string, error) {
	var roles []string
	for _, row := range rows {
		switch {
		case len(row) != 2:
			return nil, pgwire.NewError(pgwire.CodeProtocolViolation, "no roles in the answer")
		case row[1] == nil:
			continue
		case len(roles) == rolesMax:
			return nil, errTooManyRoles
		}
		roles = append(roles, string(row[1]))
	}
	return roles, nil
}
